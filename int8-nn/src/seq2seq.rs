//! Models that read one text and write another (T5): an encoder whose output the blocks of a [`Decoder`] attend to.
//!
//! The encoder runs once for a source text. The keys and values of its output, for each block of the decoder, form a KV cache
//! of their own; from then on a [`Session`] is used like that of any decoder.

use crate::Error;
use crate::backend::{
    ActivationRole, AttentionSpec, Backend, BatchCapacity, CacheCapacity, DistanceBias, GraphKey, Mask,
    Output, Phase, Segment,
};
use crate::block::{Block, Context, Loader};
use crate::checkpoint::Checkpoint;
use crate::config::DecoderConfig;
use crate::decoder::Decoder;
use crate::families::Seq2SeqNames;
use crate::precision::{Precision, Stack};
use crate::scratch::Scratch;
use crate::session::{Session, SessionOptions};

/// The encoder of the source text; its embedding is that of the decoder.
#[derive(Debug)]
pub(crate) struct SourceEncoder<B: Backend> {
    config: DecoderConfig,
    blocks: Vec<Block<B>>,
    norm: B::Norm,
    bias: Option<DistanceBias>,
    start_token: u32,
}

impl<B: Backend> SourceEncoder<B> {
    pub(crate) fn load(
        checkpoint: &Checkpoint,
        backend: &B,
        (config, start_token): (DecoderConfig, u32),
        names: &Seq2SeqNames,
        precision: &Precision,
        mut loaded: impl FnMut(),
    ) -> Result<Self, Error> {
        let loader = Loader { checkpoint, backend, config: &config, root: "", stack: Stack::Encoder };
        let norm = loader.norm(names.encoder_norm)?;
        let bias = loader.distance_bias(names.encoder_bias, Mask::Full)?;
        let mut blocks = Vec::new();
        for layer in 0..config.layers {
            blocks.push(loader.block(layer, (names.encoder_layer)(layer), precision)?);
            loaded();
        }
        Ok(Self { blocks, norm, bias, start_token, config })
    }

    /// The token that the decoder begins with.
    pub(crate) fn start_token(&self) -> u32 {
        self.start_token
    }

    /// Makes the decoder begin with another token.
    pub(crate) fn set_start_token(&mut self, token: u32) {
        self.start_token = token;
    }

    /// The blocks, for what is counted over all of a model.
    pub(crate) fn blocks(&self) -> &[Block<B>] {
        &self.blocks
    }

    /// Encodes `source` and prepares to write a text about it, in one sequence.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty source, or one that is too long or holds an id outside the vocabulary.
    pub(crate) fn session<'m>(
        &self,
        decoder: &'m Decoder<B>,
        source: &[u32],
        options: &SessionOptions,
    ) -> Result<Session<'m, B>, Error> {
        let config = &self.config;
        if source.is_empty() || source.len() > config.max_positions {
            return Err(Error::Input(format!(
                "the text to read has {} tokens; this model takes 1 to {}",
                source.len(),
                config.max_positions
            )));
        }
        if options.sequences != 1 {
            return Err(Error::Input(format!(
                "{} sequences about one source text; expected 1",
                options.sequences
            )));
        }
        decoder.check_ids(source)?;
        let backend = decoder.backend();
        let rows = source.len();
        // Nothing is kept after a block of the encoder, so one layer of a cache serves them all.
        let spec = AttentionSpec {
            bias: self.bias.clone(),
            ..crate::attention_spec::attention_spec(config, 1, Mask::Full)
        };
        let capacity = CacheCapacity { sequences: 1, max_positions: rows, total_positions: None };
        let mut cache = backend.cache(&spec, capacity)?;
        backend.reserve(&mut cache, &[(0, 0..rows)])?;
        let mut cross_kv = decoder.cross_cache(options.kv_cache, rows)?;
        let mut batch = backend.batch(BatchCapacity { rows, segments: 1, selected: 0 })?;
        let mut x = backend.activations(rows, config.hidden_size, ActivationRole::Residual)?;
        let kv_width = 2 * config.kv_heads * config.head_size;
        let mut kv = backend.activations(rows, kv_width, ActivationRole::Intermediate)?;
        let mut scratch = Scratch::new(backend, config, &self.blocks, rows)?;
        backend.set_batch(&mut batch, &[Segment { sequence: 0, position: 0, ids: source, length: rows }])?;
        let at = Context { backend, config, batch: &batch, cross_kv: None };
        let key = GraphKey { phase: Phase::Encode, rows, segments: 1, selected: 0 };
        backend.run(key, &batch, &mut || {
            backend.embed(&batch, Some(decoder.embedding()), None, Output::Store(&mut x))?;
            for block in &self.blocks {
                block.forward(&at, (0, &mut cache), &mut x, &mut scratch)?;
            }
            backend.normalize(&mut x, &self.norm)?;
            decoder.write_cross_kv(&batch, &x, &mut kv, &mut cross_kv)
        })?;
        Session::new(decoder, Some(cross_kv), options)
    }
}
