//! Models that read one text and write another (T5): an encoder whose output the blocks of a [`Decoder`] attend to.
//!
//! The encoder runs once for a source text. What the decoder needs of it, keys and values of its output in each block, is
//! kept beside the cache of the decoder's own tokens; from then on a [`Session`] is used like that of any decoder.

use crate::Error;
use crate::backend::{AttentionSpec, Backend, DistanceBias, KvCacheType, Mask, Output, Precision, Segment};
use crate::block::{self, Block, Loader, Scratch};
use crate::checkpoint::Checkpoint;
use crate::config::DecoderConfig;
use crate::decoder::{Decoder, Session};
use crate::families::Seq2SeqNames;

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
        let loader = Loader { checkpoint, backend, config: &config, root: "" };
        let norm = loader.norm(names.encoder_norm)?;
        let bias = loader.distance_bias(names.encoder_bias, Mask::Full)?;
        let mut blocks = Vec::new();
        for layer in 0..config.layers {
            blocks.push(loader.block((names.encoder_layer)(layer), precision)?);
            loaded();
        }
        Ok(Self { blocks, norm, bias, start_token, config })
    }

    /// The token that the decoder begins with.
    pub(crate) fn start_token(&self) -> u32 {
        self.start_token
    }

    /// The blocks, for what is counted over all of a model.
    pub(crate) fn blocks(&self) -> &[Block<B>] {
        &self.blocks
    }

    /// Reads `source` and prepares to write at most `max_positions` tokens, at most `max_rows` a step.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty source, or one that is too long or holds an id outside the vocabulary.
    pub(crate) fn session<'m>(
        &self,
        decoder: &'m Decoder<B>,
        source: &[u32],
        kv_cache: KvCacheType,
        max_positions: usize,
        max_rows: usize,
    ) -> Result<Session<'m, B>, Error> {
        let config = &self.config;
        if source.is_empty() || source.len() > config.max_positions {
            return Err(Error::Input(format!(
                "the text to read has {} tokens; this model takes 1 to {}",
                source.len(),
                config.max_positions
            )));
        }
        decoder.check_ids(source)?;
        let backend = decoder.backend();
        let rows = source.len();
        // Nothing is kept from block to block of the encoder, so one layer of a cache serves them all.
        let spec = AttentionSpec { bias: self.bias.clone(), ..block::attention_spec(config, 1, Mask::Full) };
        let mut cache = backend.cache(&spec, 1, rows)?;
        let mut memory = backend.cache(&decoder.memory_spec(kv_cache), 1, rows)?;
        let mut step = backend.step(rows)?;
        let mut x = backend.activations(rows, config.hidden_size)?;
        let mut kv = backend.activations(rows, 2 * config.kv_heads * config.head_size)?;
        let mut scratch = Scratch::new(backend, config, &self.blocks, rows)?;
        backend.set_step(&mut step, &[Segment { sequence: 0, position: 0, ids: source }])?;
        backend.run(&step, &mut || {
            backend.embed(&step, Some(decoder.embedding()), None, Output::Store(&mut x))?;
            for block in &self.blocks {
                block.forward((backend, config), &step, (0, &mut cache), None, &mut x, &mut scratch)?;
            }
            backend.normalize(&mut x, &self.norm)?;
            decoder.remember(&step, &x, &mut kv, &mut memory)
        })?;
        decoder.session_with(memory, kv_cache, max_positions, max_rows)
    }
}
