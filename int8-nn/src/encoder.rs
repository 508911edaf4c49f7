//! The encoder: every token sees its whole sequence, and each comes out as a vector. BERT and its relatives.

use std::sync::Arc;

use ndarray::Array2;

use crate::Error;
use crate::attention_spec::full_attention;
use crate::backend::{
    ActivationRole, Backend, BatchCapacity, CacheCapacity, DistanceBias, Feature, GraphKey, Input,
    LinearStatistics, Mask, Output, Phase, Segment,
};
use crate::block::{self, Block, Context, Distances, Loader};
use crate::calibration;
use crate::checkpoint::Checkpoint;
use crate::checks;
use crate::config::{EncoderConfig, RawConfig};
use crate::decoder::Footprint;
use crate::families;
use crate::precision::{LinearRole, Precision, Site, Stack};
use crate::shared::SharedCores;
use crate::weights::{Part, RowTable};

/// An encoder whose weights are on a backend.
#[derive(Debug)]
pub struct Encoder<B: Backend> {
    backend: Arc<B>,
    config: EncoderConfig,
    embedding: B::Embedding,
    /// The row of token type 0 is part of each of its rows.
    positions: Option<B::Embedding>,
    embedding_norm: Option<B::Norm>,
    /// From an embedding that is not as wide as the residual stream.
    project_in: Option<B::Linear>,
    bias: Option<DistanceBias>,
    blocks: Vec<Block<B>>,
    /// The blocks in the order in which they run.
    order: Vec<usize>,
    final_norm: Option<B::Norm>,
}

impl<B: Backend> Encoder<B> {
    /// Loads an encoder: `progress(done, blocks)` is called after each block. The embeddings and a projection behind them stay in
    /// floating point; all linear layers of the blocks become what `precision` says. Heads that a checkpoint has on top of its encoder
    /// (pooler, classifier) are not read.
    ///
    /// # Errors
    /// When `config.json` is of no supported encoder family or contradicts the tensors.
    pub fn load(
        checkpoint: &Checkpoint,
        backend: Arc<B>,
        precision: &Precision,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Self, Error> {
        let raw = RawConfig::read(checkpoint.source())?;
        let family = families::encoder(&raw)?;
        let config = (family.config)(&raw)?;
        checks::layers(&raw, config.network.layers, checkpoint)?;
        let names = (family.names)(&config);
        let network = &config.network;
        backend.capabilities().accept(network, precision, &[Feature::FullAttention])?;
        let root = families::root(checkpoint, names.roots, &[names.token_embedding]);
        let loader = Loader {
            checkpoint,
            backend: &*backend,
            config: network,
            root,
            stack: Stack::Encoder,
            shared: SharedCores::default(),
        };

        let width = network.embedding_size;
        let table = |name: &str, rows: usize| -> Result<RowTable, Error> {
            RowTable::stored(checkpoint, &(loader.name(name) + ".weight"), [rows, width])
        };
        let embedding = backend.embedding(&table(names.token_embedding, network.vocab_size)?)?;
        let rows = network.max_positions + config.position_offset;
        let mut positions = match config.position_table {
            true => Some(table(names.position_embedding, rows)?),
            false => None,
        };
        if let Some(name) = names.token_type_embedding.filter(|_| config.token_types > 0) {
            // A text alone is all of type 0.
            let types = table(name, config.token_types)?.matrix()?.to_f32();
            let without = match positions {
                Some(table) => table.matrix()?.to_f32(),
                None => Array2::zeros((rows, width)),
            };
            positions = Some(RowTable::from(without + types.row(0)));
        }
        let positions = positions.map(|table| backend.embedding(&table)).transpose()?;
        let embedding_norm = names.embedding_norm.map(|name| loader.norm_of(name, width)).transpose()?;
        let projection = names.project_in.map(|name| {
            let (site, part) = (Site::outside(LinearRole::Embedding), vec![Part::new(name)]);
            loader.linear(site, part, &[network.hidden_size], width, &Precision::Float)
        });
        let project_in = projection.transpose()?;
        let final_norm = names.final_norm.map(|name| loader.norm(name)).transpose()?;
        let bias = match names.distance_bias {
            Some(name) => loader.distance_bias(name, Mask::Full)?,
            None => None,
        };
        let distances = match &names.distances {
            Some(names) => Distances::load(&loader, names)?.map(|distances| (names, distances)),
            None => None,
        };
        let mut blocks = Vec::new();
        for layer in 0..network.layers {
            let mut block = loader.block(layer, (names.layer)(layer), precision)?;
            if let Some((names, distances)) = &distances {
                distances.project(&loader, (layer, &mut block), names, precision)?;
            }
            blocks.push(block);
            progress(layer + 1, network.layers);
        }
        let order = config.order.clone().unwrap_or_else(|| (0..blocks.len()).collect());
        let encoder = Self {
            embedding,
            positions,
            embedding_norm,
            project_in,
            bias,
            blocks,
            order,
            final_norm,
            config,
            backend,
        };
        calibration::encoder(&encoder)?;
        Ok(encoder)
    }

    /// The backend the weights are on.
    pub(crate) fn backend(&self) -> &B {
        &self.backend
    }

    /// The linear layers: those of the blocks, and the projection behind the embedding.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &B::Linear> {
        self.blocks.iter().flat_map(Block::linears).map(|(_, linear)| linear).chain(&self.project_in)
    }

    /// The normalised configuration.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// The last hidden states `f32 [tokens, hidden_size]` of each sequence. The sequences are computed in one forward, one
    /// after the other in its rows: there is no padding, and none sees another (but with `Column` outlier granularity they
    /// share their outlier columns).
    ///
    /// # Errors
    /// [`Error::Input`] for a sequence without tokens or longer than the model's positions, or an id outside the vocabulary.
    pub fn hidden_states(&self, sequences: &[&[u32]]) -> Result<Vec<Array2<f32>>, Error> {
        let (backend, config) = (&*self.backend, &self.config.network);
        let longest = self.check(sequences)?;
        let rows = sequences.iter().map(|ids| ids.len()).sum();
        if rows == 0 {
            return Ok(Vec::new());
        }
        let (spec, places) = full_attention(config, &self.blocks, self.bias.as_ref());
        let segments = sequences.len();
        let capacity = CacheCapacity { sequences: segments, max_positions: longest, total_positions: None };
        let mut cache = backend.cache(&spec, capacity)?;
        let ranges: Vec<_> = sequences.iter().map(|ids| 0..ids.len()).enumerate().collect();
        backend.reserve(&mut cache, &ranges)?;
        let mut batch = backend.batch(BatchCapacity { rows, segments, selected: 0 })?;
        let mut x = backend.activations(rows, config.hidden_size, ActivationRole::Residual)?;
        let narrow = if self.project_in.is_some() { rows } else { 0 };
        let mut narrow = backend.activations(narrow, config.embedding_size, ActivationRole::Residual)?;
        let mut scratch = block::scratch(backend, config, &self.blocks, rows)?;
        let all: Vec<Segment<'_>> = sequences
            .iter()
            .enumerate()
            .map(|(sequence, ids)| Segment { sequence, position: 0, ids, length: ids.len() })
            .collect();
        backend.set_batch(&mut batch, &all)?;
        let at = Context { backend, config, batch: &batch, cross_kv: None };
        let key = GraphKey { phase: Phase::Encode, rows, segments, selected: 0 };
        backend.run(key, &batch, &mut || {
            self.embed(&batch, &mut narrow, &mut x)?;
            for index in &self.order {
                self.blocks[*index].forward(&at, (places[*index], &mut cache), &mut x, &mut scratch)?;
            }
            match &self.final_norm {
                Some(norm) => backend.normalize(&mut x, norm),
                None => Ok(()),
            }
        })?;
        let mut host = Vec::new();
        let mut rest = backend.read(&x, &mut host)?;
        sequences
            .iter()
            .map(|ids| {
                let (rows, tail) = rest.split_at(ids.len() * config.hidden_size);
                rest = tail;
                Array2::from_shape_vec((ids.len(), config.hidden_size), rows.to_vec())
                    .map_err(|error| Error::Input(format!("hidden states: {error}")))
            })
            .collect()
    }

    /// `x [rows, hidden_size]` = the embedded tokens of the batch; `narrow` is used where the embedding is not as wide.
    fn embed(
        &self,
        batch: &B::Batch,
        narrow: &mut B::Activations,
        x: &mut B::Activations,
    ) -> Result<(), Error> {
        let backend = &*self.backend;
        let positions = self.positions.as_ref().map(|table| (table, self.config.position_offset));
        let embedded = if self.project_in.is_some() { &mut *narrow } else { &mut *x };
        backend.embed(batch, Some(&self.embedding), positions, Output::Store(&mut *embedded))?;
        if let Some(norm) = &self.embedding_norm {
            backend.normalize(embedded, norm)?;
        }
        match &self.project_in {
            Some(project) => backend.project(Input::Plain(narrow), &mut [(project, Output::Store(x))]),
            None => Ok(()),
        }
    }

    /// Checks sequences; their largest length.
    fn check(&self, sequences: &[&[u32]]) -> Result<usize, Error> {
        let config = &self.config.network;
        for (index, ids) in sequences.iter().enumerate() {
            if ids.is_empty() || ids.len() > config.max_positions {
                return Err(Error::Input(format!(
                    "sequence {index} has {} tokens; this model takes 1 to {}",
                    ids.len(),
                    config.max_positions
                )));
            }
            if let Some(id) = ids.iter().find(|id| crate::convert::index(**id) >= config.vocab_size) {
                return Err(Error::Input(format!(
                    "token id {id} is not in the vocabulary of {}",
                    config.vocab_size
                )));
            }
        }
        Ok(sequences.iter().map(|ids| ids.len()).max().unwrap_or(0))
    }

    /// Where the weights' bytes are.
    pub fn footprint(&self) -> Footprint {
        let (backend, config) = (&*self.backend, &self.config.network);
        let linears = self.blocks.iter().flat_map(Block::linears);
        let positions = match self.positions {
            Some(_) => config.max_positions + self.config.position_offset,
            None => 0,
        };
        let tables = [Some(&self.embedding), self.positions.as_ref()];
        let projection = self.project_in.as_ref();
        Footprint {
            linear: linears.map(|(_, linear)| backend.linear_bytes(linear)).sum(),
            linear_weights: self.blocks.iter().map(Block::weights).sum(),
            embedding: tables
                .into_iter()
                .flatten()
                .map(|table| backend.embedding_bytes(table))
                .sum::<usize>()
                + projection.map_or(0, |linear| backend.linear_bytes(linear)),
            embedding_weights: (config.vocab_size + positions) * config.embedding_size
                + projection.map_or(0, |_| config.embedding_size * config.hidden_size),
        }
    }

    /// The counts of every linear layer of the blocks, in the order of the model.
    pub fn statistics(&self) -> Vec<(LinearRole, LinearStatistics)> {
        let linears = self.blocks.iter().flat_map(Block::linears);
        linears.map(|(role, linear)| (role, self.backend.statistics(linear))).collect()
    }
}
