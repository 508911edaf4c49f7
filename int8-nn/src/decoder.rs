//! The decoder: one implementation for every family, over any backend.

use std::sync::Arc;

use crate::Error;
use crate::backend::{
    AttentionSpec, Backend, DistanceBias, Input, KvCacheType, LinearStatistics, Mask, Output, Precision,
    Quantization, RowSelection, Segment,
};
pub use crate::block::LinearRole;
use crate::block::{self, Block, Loader, Scratch};
use crate::checkpoint::Checkpoint;
use crate::config::{DecoderConfig, Positions, RawConfig, RotaryPrecision, Seq2SeqConfig};
use crate::families::{self, CrossNamesOf, TensorNames};
use crate::seq2seq::SourceEncoder;
use crate::weights::{LinearSource, Part, read_matrix};

/// A decoder-only transformer whose weights are on a backend.
#[derive(Debug)]
pub struct Decoder<B: Backend> {
    backend: Arc<B>,
    config: DecoderConfig,
    embedding: B::Embedding,
    positions: Option<(B::Embedding, usize)>,
    embedding_norm: Option<B::Norm>,
    project_in: Option<B::Linear>,
    blocks: Vec<Block<B>>,
    final_norm: Option<B::Norm>,
    project_out: Option<B::Linear>,
    head: B::Linear,
    /// Whether the head's weights are the embedding's and take no memory of their own.
    head_is_shared: bool,
    bias: Option<DistanceBias>,
    kv_cache_type: KvCacheType,
    /// Weights of the blocks' linear layers, without biases.
    linear_weights: usize,
}

/// Where a model's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Footprint {
    /// Linear layers of the blocks as they are held now.
    pub linear: usize,
    /// Their number of weights (without biases).
    pub linear_weights: usize,
    /// Embeddings and head (once, if tied), in their stored type; a head in int8 beside the table it is tied to.
    pub embedding: usize,
    /// Number of weights in them.
    pub embedding_weights: usize,
}

impl Footprint {
    /// Bytes of all weights as they are held now.
    pub fn total(&self) -> usize {
        self.linear + self.embedding
    }

    /// Bytes of all weights with `bytes` for each.
    pub fn at(&self, bytes: usize) -> usize {
        (self.linear_weights + self.embedding_weights) * bytes
    }
}

impl<B: Backend> Decoder<B> {
    /// Loads a decoder: `progress(done, blocks)` is called after each block.
    ///
    /// The embedding, the head and the projections around them stay in floating point, as `bitsandbytes` leaves them by
    /// default, unless `precision` asks for an int8 head; all linear layers of the blocks become what `precision` says.
    /// `rotary` changes nothing in a model without rotary positions.
    ///
    /// # Errors
    /// When `config.json` is of no supported family or contradicts the tensors.
    pub fn load(
        checkpoint: &Checkpoint,
        backend: Arc<B>,
        precision: &Precision,
        rotary: RotaryPrecision,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Self, Error> {
        let raw = RawConfig::read(checkpoint.source())?;
        let family = families::of(&raw)?;
        let mut config = (family.config)(&raw)?;
        config.set_rotary_precision(rotary);
        let names = (family.names)(&config);
        let layers = config.layers;
        let mut loaded = 0;
        Self::assemble(checkpoint, backend, config, names, None, precision, || {
            loaded += 1;
            progress(loaded, layers);
        })
    }

    /// Loads a decoder whose blocks attend to the output of an encoder, and that encoder.
    pub(crate) fn load_with_source(
        checkpoint: &Checkpoint,
        backend: Arc<B>,
        precision: &Precision,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<(Self, SourceEncoder<B>), Error> {
        let raw = RawConfig::read(checkpoint.source())?;
        let family = families::seq2seq(&raw)?;
        let Seq2SeqConfig { encoder, mut decoder, start_token } = (family.config)(&raw)?;
        let names = (family.names)(&decoder);
        if checkpoint.contains(&format!("{}.weight", names.decoder.head)) {
            decoder.tied_embeddings = false;
        }
        let all = encoder.layers + decoder.layers;
        let mut loaded = 0;
        let mut loaded = || {
            loaded += 1;
            progress(loaded, all);
        };
        backend.accept(&encoder)?;
        let source = SourceEncoder::load(
            checkpoint,
            &*backend,
            (encoder, start_token),
            &names,
            precision,
            &mut loaded,
        )?;
        let cross = Some((names.decoder_bias, names.cross));
        let decoder =
            Self::assemble(checkpoint, backend, decoder, names.decoder, cross, precision, &mut loaded)?;
        Ok((decoder, source))
    }

    /// `cross`: the name of the bias by distance, and those of each block's attention to another text.
    fn assemble(
        checkpoint: &Checkpoint,
        backend: Arc<B>,
        config: DecoderConfig,
        names: TensorNames,
        cross: Option<(&str, CrossNamesOf)>,
        precision: &Precision,
        mut loaded: impl FnMut(),
    ) -> Result<Self, Error> {
        backend.accept(&config)?;
        let loader = Loader {
            checkpoint,
            backend: &*backend,
            config: &config,
            root: block::root(checkpoint, names.roots, names.token_embedding),
        };

        let token_embedding = loader.name(names.token_embedding);
        let tokens = checkpoint.tensor(&format!("{token_embedding}.weight"))?;
        let tokens = tokens.expect_shape(&[config.vocab_size, config.embedding_size])?;
        let table = read_matrix(&tokens)?;
        let kv_cache_type = table.kv_cache_type();
        let embedding = backend.embedding(table)?;
        let positions = match (&config.positions, names.position_embedding) {
            (Positions::Learned { offset }, Some(name)) => {
                let table = checkpoint.tensor(&(loader.name(name) + ".weight"))?;
                let table = table.expect_shape(&[config.max_positions + offset, config.hidden_size])?;
                Some((backend.embedding(read_matrix(&table)?)?, *offset))
            }
            _ => None,
        };
        let float = Precision::Float;
        let head_precision = match precision {
            // What it reads comes out of a normalisation.
            Precision::Int8(Quantization { int8_head: true, .. }) => precision.of(LinearRole::Up),
            _ => float,
        };
        let head_is_shared = config.tied_embeddings && head_precision == float;
        let head = if head_is_shared {
            backend.tied(&embedding)?
        } else {
            let name = if config.tied_embeddings { &token_embedding } else { names.head };
            let parts = vec![Part::new(name)];
            let source =
                LinearSource::find(checkpoint, "", parts, &[config.vocab_size], config.embedding_size)?;
            backend.linear(&source, &head_precision)?
        };
        let project = |name: Option<&str>, outputs: usize, inputs: usize| {
            name.map(|name| loader.linear(vec![Part::new(name)], &[outputs], inputs, &float)).transpose()
        };
        let project_in = project(names.project_in, config.hidden_size, config.embedding_size)?;
        let project_out = project(names.project_out, config.embedding_size, config.hidden_size)?;
        let norm = |name: Option<&str>| name.map(|name| loader.norm(name)).transpose();
        let embedding_norm = norm(names.embedding_norm)?;
        let final_norm = norm(names.final_norm)?;

        let mut blocks = Vec::new();
        let mut linear_weights = 0;
        for layer in 0..config.layers {
            let names = (names.layer)(layer);
            let block = match &cross {
                None => loader.block(names, precision)?,
                Some((_, cross)) => loader.cross_block(names, cross(layer), precision)?,
            };
            linear_weights += block.weights();
            blocks.push(block);
            loaded();
        }
        let bias = match cross {
            None => None,
            Some((name, _)) => loader.distance_bias(name, Mask::Causal)?,
        };
        Ok(Self {
            bias,
            kv_cache_type,
            linear_weights,
            embedding,
            positions,
            embedding_norm,
            project_in,
            blocks,
            final_norm,
            project_out,
            head,
            head_is_shared,
            config,
            backend,
        })
    }

    /// The normalised configuration.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The backend the weights are on.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The type in which a text that is generated keeps its keys and values unless it is asked for another: that of the
    /// checkpoint's embedding, which no quantisation touches. transformers keeps them in the same, where it computes in the
    /// checkpoint's type.
    pub fn kv_cache_type(&self) -> KvCacheType {
        self.kv_cache_type
    }

    /// Prepares to run `sequences` sequences of at most `max_positions` tokens, at most `max_rows` tokens a step. Keys and
    /// values are kept in f32, as they are computed.
    ///
    /// # Errors
    /// When `max_positions` is more than the model has, or memory is short.
    pub fn session(
        &self,
        sequences: usize,
        max_positions: usize,
        max_rows: usize,
    ) -> Result<Session<'_, B>, Error> {
        self.session_with_cache(KvCacheType::F32, sequences, max_positions, max_rows)
    }

    /// As [`session`](Self::session), with keys and values rounded to `kv_cache`.
    ///
    /// # Errors
    /// As [`session`](Self::session).
    pub fn session_with_cache(
        &self,
        kv_cache: KvCacheType,
        sequences: usize,
        max_positions: usize,
        max_rows: usize,
    ) -> Result<Session<'_, B>, Error> {
        if self.blocks.iter().any(Block::needs_memory) {
            return Err(Error::Unsupported(format!(
                "a {} model writes a text about another one, and cannot continue or score a text alone; `int8 run` \
                 (generate) gives it a text to read",
                self.config.family
            )));
        }
        self.any_session(None, kv_cache, sequences, max_positions, max_rows)
    }

    /// A session of one sequence whose blocks attend to what `memory` holds.
    pub(crate) fn session_with(
        &self,
        memory: B::Cache,
        kv_cache: KvCacheType,
        max_positions: usize,
        max_rows: usize,
    ) -> Result<Session<'_, B>, Error> {
        self.any_session(Some(memory), kv_cache, 1, max_positions, max_rows)
    }

    fn any_session(
        &self,
        memory: Option<B::Cache>,
        kv_cache: KvCacheType,
        sequences: usize,
        max_positions: usize,
        max_rows: usize,
    ) -> Result<Session<'_, B>, Error> {
        let config = &self.config;
        if max_positions > config.max_positions {
            return Err(Error::Input(format!(
                "{max_positions} positions asked for, but this model has only {}; shorten the text, the window or the number of new tokens",
                config.max_positions
            )));
        }
        let spec = block::attention_spec(config, config.layers, Mask::Causal);
        let spec = AttentionSpec { bias: self.bias.clone(), kv_cache, ..spec };
        let backend = &*self.backend;
        let rows = |width| backend.activations(max_rows, width);
        Ok(Session {
            cache: backend.cache(&spec, sequences, max_positions)?,
            memory,
            step: backend.step(max_rows)?,
            narrow: rows(config.embedding_size)?,
            x: rows(config.hidden_size)?,
            scratch: Scratch::new(backend, config, &self.blocks, max_rows)?,
            selected: rows(config.hidden_size)?,
            logits: backend.activations(0, config.vocab_size)?,
            host: Vec::new(),
            lengths: vec![0; sequences],
            max_positions,
            max_rows,
            rows: 0,
            decoder: self,
        })
    }

    /// What attention to another text needs to know: keys and values of each block, seen from everywhere.
    pub(crate) fn memory_spec(&self, kv_cache: KvCacheType) -> AttentionSpec {
        let spec = block::attention_spec(&self.config, self.config.layers, Mask::Full);
        AttentionSpec { kv_cache, ..spec }
    }

    /// Keeps what each block attends to of another text, `source [rows, hidden_size]`.
    pub(crate) fn remember(
        &self,
        step: &B::Step,
        source: &B::Activations,
        kv: &mut B::Activations,
        memory: &mut B::Cache,
    ) -> Result<(), Error> {
        for (layer, block) in self.blocks.iter().enumerate() {
            block.remember(&self.backend, step, source, kv, (layer, memory))?;
        }
        Ok(())
    }

    /// The token embedding.
    pub(crate) fn embedding(&self) -> &B::Embedding {
        &self.embedding
    }

    /// Checks that all ids are in the vocabulary.
    pub(crate) fn check_ids(&self, ids: &[u32]) -> Result<(), Error> {
        let vocabulary = self.config.vocab_size;
        match ids.iter().find(|id| crate::convert::index(**id) >= vocabulary) {
            Some(id) => Err(Error::Input(format!("token id {id} is not in the vocabulary of {vocabulary}"))),
            None => Ok(()),
        }
    }

    /// Where the weights' bytes are.
    pub fn footprint(&self) -> Footprint {
        let (backend, config) = (&*self.backend, &self.config);
        let mut footprint = Footprint { linear_weights: self.linear_weights, ..Footprint::default() };
        for (_, _, linear) in self.linears() {
            footprint.linear += backend.linear_bytes(linear);
        }
        footprint.embedding = backend.embedding_bytes(&self.embedding)
            + self.positions.as_ref().map_or(0, |(table, _)| backend.embedding_bytes(table))
            + if self.head_is_shared { 0 } else { backend.linear_bytes(&self.head) };
        let tables = if config.tied_embeddings { 1 } else { 2 };
        let positions = match config.positions {
            Positions::Learned { offset } => (config.max_positions + offset) * config.hidden_size,
            Positions::Alibi | Positions::Rotary(_) | Positions::Relative(_) | Positions::None => 0,
        };
        footprint.embedding_weights = tables * config.vocab_size * config.embedding_size + positions;
        footprint
    }

    /// What every linear layer of the blocks has met, in the order of the model; two a block, and
    /// two for each of its MLPs: one, or one an expert.
    pub fn statistics(&self) -> Vec<(LinearRole, LinearStatistics)> {
        self.linears().map(|(_, role, linear)| (role, self.backend.statistics(linear))).collect()
    }

    /// Forgets what the linear layers have met.
    pub fn reset_statistics(&self) {
        self.linears().for_each(|(_, _, linear)| self.backend.reset_statistics(linear));
    }

    /// The linear layers of the blocks and what they are for, with the number of their block, in the order of the model.
    pub fn linears(&self) -> impl Iterator<Item = (usize, LinearRole, &B::Linear)> {
        let blocks = self.blocks.iter().enumerate();
        blocks.flat_map(|(number, block)| block.linears().map(move |(role, linear)| (number, role, linear)))
    }
}

/// A decoder at work: the cache of past tokens and the activations of a step, allocated once.
#[derive(Debug)]
pub struct Session<'m, B: Backend> {
    decoder: &'m Decoder<B>,
    cache: B::Cache,
    /// What the blocks attend to of another text.
    memory: Option<B::Cache>,
    step: B::Step,
    /// Token embeddings where they are narrower than the residual stream.
    narrow: B::Activations,
    /// The residual stream.
    x: B::Activations,
    scratch: Scratch<B>,
    selected: B::Activations,
    logits: B::Activations,
    host: Vec<f32>,
    lengths: Vec<usize>,
    max_positions: usize,
    max_rows: usize,
    /// Rows of the last step.
    rows: usize,
}

impl<B: Backend> Session<'_, B> {
    /// Tokens that sequence `sequence` holds.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn len(&self, sequence: usize) -> usize {
        self.lengths[sequence]
    }

    /// Whether no sequence holds a token.
    pub fn is_empty(&self) -> bool {
        self.lengths.iter().all(|length| *length == 0)
    }

    /// Bytes of the keys and values, room for tokens to come included.
    pub fn cache_bytes(&self) -> usize {
        let backend = &*self.decoder.backend;
        let memory = self.memory.as_ref().map_or(0, |memory| backend.cache_bytes(memory));
        backend.cache_bytes(&self.cache) + memory
    }

    /// Most tokens one step can take.
    pub fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// Empties a sequence.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn clear(&mut self, sequence: usize) {
        self.lengths[sequence] = 0;
    }

    /// Appends tokens to sequences, `(sequence, ids)` each, and computes their hidden states in one step.
    ///
    /// # Errors
    /// When an id is not in the vocabulary, a sequence does not exist, stands twice or grows too long, or the step has
    /// no or too many tokens. Nothing has changed then.
    pub fn forward(&mut self, batch: &[(usize, &[u32])]) -> Result<(), Error> {
        let rows = self.check(batch)?;
        let segments: Vec<Segment<'_>> = batch
            .iter()
            .map(|&(sequence, ids)| Segment { sequence, position: self.lengths[sequence], ids })
            .collect();
        let decoder = self.decoder;
        let backend = &*decoder.backend;
        backend.set_step(&mut self.step, &segments)?;
        let (step, x) = (&self.step, &mut self.x);
        let (narrow, scratch, cache) = (&mut self.narrow, &mut self.scratch, &mut self.cache);
        let (model, memory) = ((backend, &decoder.config), self.memory.as_ref());
        backend.run(step, &mut || {
            decoder.embed(step, narrow, x)?;
            for (layer, block) in decoder.blocks.iter().enumerate() {
                block.forward(model, step, (layer, cache), memory, x, scratch)?;
            }
            Ok(())
        })?;
        for segment in segments {
            self.lengths[segment.sequence] += segment.ids.len();
        }
        self.rows = rows;
        Ok(())
    }

    /// The logits `[selected, vocabulary]`, row-major, of tokens of the last step.
    ///
    /// # Errors
    /// When a row was not in the last step.
    pub fn logits(&mut self, rows: &RowSelection) -> Result<&[f32], Error> {
        if let RowSelection::Range(range) = rows
            && (range.start > range.end || range.end > self.rows)
        {
            return Err(Error::Input(format!(
                "logits of rows {range:?} asked for; the last step had {}",
                self.rows
            )));
        }
        let decoder = self.decoder;
        let backend = &*decoder.backend;
        let (step, x) = (&self.step, &self.x);
        let (selected, narrow, logits) = (&mut self.selected, &mut self.narrow, &mut self.logits);
        backend.run(step, &mut || {
            backend.select(step, x, rows, selected)?;
            let selected = match &decoder.final_norm {
                Some(norm) => Input::Normed(selected, norm),
                None => Input::Plain(selected),
            };
            match &decoder.project_out {
                None => backend.project(selected, &decoder.head, Output::Store(logits)),
                Some(project) => {
                    backend.project(selected, project, Output::Store(narrow))?;
                    backend.project(Input::Plain(narrow), &decoder.head, Output::Store(logits))
                }
            }
        })?;
        backend.read(&self.logits, &mut self.host)?;
        if let Some(factor) = decoder.config.logit_scale {
            self.host.iter_mut().for_each(|logit| *logit *= factor);
        }
        if let Some(cap) = decoder.config.logit_softcap {
            self.host.iter_mut().for_each(|logit| *logit = cap * (*logit / cap).tanh());
        }
        Ok(&self.host)
    }

    fn check(&self, batch: &[(usize, &[u32])]) -> Result<usize, Error> {
        let mut seen = vec![false; self.lengths.len()];
        for &(sequence, ids) in batch {
            let Some(length) = self.lengths.get(sequence) else {
                return Err(Error::Input(format!(
                    "sequence {sequence} of a session of {}",
                    self.lengths.len()
                )));
            };
            if std::mem::replace(&mut seen[sequence], true) {
                return Err(Error::Input(format!("sequence {sequence} stands twice in one step")));
            }
            if length + ids.len() > self.max_positions {
                return Err(Error::Input(format!(
                    "sequence {sequence} would hold {} tokens; this session was made for {}",
                    length + ids.len(),
                    self.max_positions
                )));
            }
            self.decoder.check_ids(ids)?;
        }
        let rows = batch.iter().map(|(_, ids)| ids.len()).sum();
        if rows == 0 || rows > self.max_rows || batch.iter().any(|(_, ids)| ids.is_empty()) {
            return Err(Error::Input(format!(
                "a step of {rows} tokens; this session takes 1 to {}, at least one for each sequence",
                self.max_rows
            )));
        }
        Ok(rows)
    }
}

impl<B: Backend> Decoder<B> {
    fn embed(
        &self,
        step: &B::Step,
        narrow: &mut B::Activations,
        x: &mut B::Activations,
    ) -> Result<(), Error> {
        let backend = &*self.backend;
        let positions = self.positions.as_ref().map(|(table, offset)| (table, *offset));
        match &self.project_in {
            None => backend.embed(step, Some(&self.embedding), positions, Output::Store(x))?,
            Some(project) => {
                backend.embed(step, Some(&self.embedding), None, Output::Store(narrow))?;
                backend.project(Input::Plain(narrow), project, Output::Store(x))?;
                backend.embed(step, None, positions, Output::Add(x))?;
            }
        }
        if let Some(factor) = self.config.embedding_scale {
            backend.scale(x, factor)?;
        }
        match &self.embedding_norm {
            Some(norm) => backend.normalize(x, norm),
            None => Ok(()),
        }
    }
}
