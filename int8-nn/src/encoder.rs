//! The encoder: every token sees its whole sequence, and each comes out as a vector. BERT and its relatives.

use std::sync::Arc;

use ndarray::Array2;

use crate::Error;
use crate::backend::{
    ActivationRole, AttentionSpec, Backend, BatchCapacity, CacheCapacity, DistanceBias, Feature, GraphKey,
    LinearStatistics, Mask, Output, Phase, Segment,
};
use crate::block::{self, Block, Context, Loader};
use crate::calibration;
use crate::checkpoint::Checkpoint;
use crate::config::{EncoderConfig, RawConfig};
use crate::decoder::Footprint;
use crate::families;
use crate::precision::{LinearRole, Precision, Stack};
use crate::scratch::Scratch;
use crate::weights::{FloatMatrix, read_matrix};

/// An encoder whose weights are on a backend.
#[derive(Debug)]
pub struct Encoder<B: Backend> {
    backend: Arc<B>,
    config: EncoderConfig,
    embedding: B::Embedding,
    /// The row of token type 0 is part of each of its rows.
    positions: B::Embedding,
    embedding_norm: B::Norm,
    bias: Option<DistanceBias>,
    blocks: Vec<Block<B>>,
}

impl<B: Backend> Encoder<B> {
    /// Loads an encoder: `progress(done, blocks)` is called after each block. The embeddings stay in floating point; all
    /// linear layers of the blocks become what `precision` says. Heads that a checkpoint has on top of its encoder
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
        let names = (family.names)(&config);
        let network = &config.network;
        backend.capabilities().accept(network, precision, &[Feature::FullAttention])?;
        let root = block::root(checkpoint, names.roots, &[names.token_embedding]);
        let loader = Loader { checkpoint, backend: &*backend, config: network, root, stack: Stack::Encoder };

        let table = |name: &str, rows: usize| -> Result<FloatMatrix, Error> {
            let tensor = checkpoint.tensor(&(loader.name(name) + ".weight"))?;
            read_matrix(&tensor.expect_shape(&[rows, network.hidden_size])?)
        };
        let embedding = backend.embedding(table(names.token_embedding, network.vocab_size)?)?;
        let mut positions = table(names.position_embedding, network.max_positions + config.position_offset)?;
        if let Some(name) = names.token_type_embedding {
            // A text alone is all of type 0.
            let types = table(name, config.token_types)?.to_f32();
            positions = FloatMatrix::from(positions.to_f32() + types.row(0));
        }
        let positions = backend.embedding(positions)?;
        let embedding_norm = loader.norm(names.embedding_norm)?;
        let bias = match names.distance_bias {
            Some(name) => loader.distance_bias(name, Mask::Full)?,
            None => None,
        };
        let mut blocks = Vec::new();
        for layer in 0..network.layers {
            blocks.push(loader.block(layer, (names.layer)(layer), precision)?);
            progress(layer + 1, network.layers);
        }
        let encoder = Self { embedding, positions, embedding_norm, bias, blocks, config, backend };
        calibration::encoder(&encoder)?;
        Ok(encoder)
    }

    /// The backend the weights are on.
    pub(crate) fn backend(&self) -> &B {
        &self.backend
    }

    /// The linear layers of the blocks.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &B::Linear> {
        self.blocks.iter().flat_map(Block::linears).map(|(_, linear)| linear)
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
        // Nothing is kept after a block, so one layer of a cache serves them all.
        let spec = AttentionSpec {
            bias: self.bias.clone(),
            ..crate::attention_spec::attention_spec(config, 1, Mask::Full)
        };
        let segments = sequences.len();
        let capacity = CacheCapacity { sequences: segments, max_positions: longest, total_positions: None };
        let mut cache = backend.cache(&spec, capacity)?;
        let ranges: Vec<_> = sequences.iter().map(|ids| 0..ids.len()).enumerate().collect();
        backend.reserve(&mut cache, &ranges)?;
        let mut batch = backend.batch(BatchCapacity { rows, segments, selected: 0 })?;
        let mut x = backend.activations(rows, config.hidden_size, ActivationRole::Residual)?;
        let mut scratch = Scratch::new(backend, config, &self.blocks, rows)?;
        let all: Vec<Segment<'_>> = sequences
            .iter()
            .enumerate()
            .map(|(sequence, ids)| Segment { sequence, position: 0, ids, length: ids.len() })
            .collect();
        backend.set_batch(&mut batch, &all)?;
        let at = Context { backend, config, batch: &batch, cross_kv: None };
        let key = GraphKey { phase: Phase::Encode, rows, segments, selected: 0 };
        backend.run(key, &batch, &mut || {
            let positions = Some((&self.positions, self.config.position_offset));
            backend.embed(&batch, Some(&self.embedding), positions, Output::Store(&mut x))?;
            backend.normalize(&mut x, &self.embedding_norm)?;
            for block in &self.blocks {
                block.forward(&at, (0, &mut cache), &mut x, &mut scratch)?;
            }
            Ok(())
        })?;
        let mut host = Vec::new();
        backend.read(&x, &mut host)?;
        let mut rest = &host[..];
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
        let rows = config.vocab_size + config.max_positions + self.config.position_offset;
        Footprint {
            linear: linears.map(|(_, linear)| backend.linear_bytes(linear)).sum(),
            linear_weights: self.blocks.iter().map(Block::weights).sum(),
            embedding: backend.embedding_bytes(&self.embedding) + backend.embedding_bytes(&self.positions),
            embedding_weights: rows * config.hidden_size,
        }
    }

    /// The counts of every linear layer of the blocks, in the order of the model.
    pub fn statistics(&self) -> Vec<(LinearRole, LinearStatistics)> {
        let linears = self.blocks.iter().flat_map(Block::linears);
        linears.map(|(role, linear)| (role, self.backend.statistics(linear))).collect()
    }
}
