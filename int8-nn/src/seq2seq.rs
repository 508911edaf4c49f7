//! Models that read a text or speech and write another text (T5, Whisper): an encoder whose output the blocks of a [`Decoder`] attend to.
//!
//! The encoder runs once for a source. The keys and values of its output, for each block of the decoder, form a KV cache
//! of their own; from then on a [`Session`] is used like that of any decoder.

use ndarray::{Array2, ArrayView2};

use crate::attention_spec::full_attention;
use crate::audio::Convolution;
use crate::backend::{
    ActivationRole, Backend, BatchCapacity, CacheCapacity, DistanceBias, GraphKey, Mask, Output, Phase,
    Segment,
};
use crate::block::{self, Block, Context, Loader};
use crate::config::{DecoderConfig, Seq2SeqConfig};
use crate::decoder::Decoder;
use crate::families::SourceNames;
use crate::position_table::{self, PositionTable};
use crate::precision::Precision;
use crate::session::{Session, SessionOptions};
use crate::weights::RowTable;
use crate::{Error, convert};

/// What an encoder reads.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source<'a> {
    /// Token ids.
    Text(&'a [u32]),
    /// A log-mel spectrum `[frames, bins]`.
    Spectrum(ArrayView2<'a, f32>),
}

/// The encoder of the source; of a text it has the decoder's embedding.
#[derive(Debug)]
pub(crate) struct SourceEncoder<B: Backend> {
    config: DecoderConfig,
    /// What spectra go through; none for texts.
    convolutions: Vec<Convolution>,
    positions: Option<PositionTable<B>>,
    embedding_norm: Option<B::Norm>,
    blocks: Vec<Block<B>>,
    norm: Option<B::Norm>,
    bias: Option<DistanceBias>,
    start_token: u32,
}

impl<B: Backend> SourceEncoder<B> {
    /// Loads the encoder of `config`, whose tensors `loader` finds.
    pub(crate) fn load(
        loader: &Loader<'_, B>,
        config: &Seq2SeqConfig,
        names: SourceNames,
        precision: &Precision,
        mut loaded: impl FnMut(),
    ) -> Result<Self, Error> {
        let norm = |name: Option<&str>| name.map(|name| loader.norm(name)).transpose();
        let bias = match names.bias {
            Some(name) => loader.distance_bias(name, Mask::Full)?,
            None => None,
        };
        let mut convolutions = Vec::new();
        for (name, (inputs, stride)) in names
            .convolutions
            .iter()
            .zip([(config.mel_bins.unwrap_or_default(), 1), (config.encoder.hidden_size, 2)])
        {
            let shape = (config.encoder.hidden_size, inputs);
            convolutions.push(Convolution::load(loader.checkpoint, &loader.name(name), shape, stride)?);
        }
        let mut blocks = Vec::new();
        for layer in 0..config.encoder.layers {
            blocks.push(loader.block(layer, (names.layer)(layer), precision)?);
            loaded();
        }
        Ok(Self {
            convolutions,
            positions: position_table::load(loader, names.position_embedding)?,
            embedding_norm: norm(names.embedding_norm)?,
            norm: norm(names.norm)?,
            blocks,
            bias,
            start_token: config.start_token,
            config: config.encoder.clone(),
        })
    }

    /// The token that the decoder begins with.
    pub(crate) fn start_token(&self) -> u32 {
        self.start_token
    }

    /// Makes the decoder begin with another token.
    pub(crate) fn set_start_token(&mut self, token: u32) {
        self.start_token = token;
    }

    /// Bytes and number of the weights of the convolutions.
    pub(crate) fn convolution_weights(&self) -> (usize, usize) {
        let bytes = self.convolutions.iter().map(Convolution::bytes).sum();
        (bytes, self.convolutions.iter().map(Convolution::weights).sum())
    }

    /// The configuration.
    pub(crate) fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The blocks, for what is counted over all of a model.
    pub(crate) fn blocks(&self) -> &[Block<B>] {
        &self.blocks
    }

    /// Encodes `source` and prepares to write a text about it, in one sequence.
    ///
    /// # Errors
    /// [`Error::Input`] for an empty source, one that is too long or holds an id outside the vocabulary, or a spectrum of another
    /// length than the model's.
    pub(crate) fn session<'m>(
        &self,
        decoder: &'m Decoder<B>,
        source: Source<'_>,
        options: &SessionOptions,
    ) -> Result<Session<'m, B>, Error> {
        let config = &self.config;
        if options.sequences != 1 {
            return Err(Error::Input(format!(
                "{} sequences about one source text; expected 1",
                options.sequences
            )));
        }
        let backend = decoder.backend();
        // The rows of a spectrum are looked up in order, like those of an embedding.
        let (ids, table) = match source {
            Source::Text(ids) => {
                self.check_length("the text to read", "tokens", ids.len(), 1)?;
                decoder.check_ids(ids)?;
                (ids.to_vec(), None)
            }
            Source::Spectrum(spectrum) => {
                let frames = self.frames(spectrum)?;
                let ids = (0..convert::token_id(frames.nrows())).collect();
                (ids, Some(backend.embedding(&RowTable::from(frames))?))
            }
        };
        let tokens = table.as_ref().unwrap_or(decoder.embedding());
        let rows = ids.len();
        let (spec, places) = full_attention(config, &self.blocks, self.bias.as_ref());
        let capacity = CacheCapacity { sequences: 1, max_positions: rows, total_positions: None };
        let mut cache = backend.cache(&spec, capacity)?;
        backend.reserve(&mut cache, &[(0, 0..rows)])?;
        let mut cross_kv = decoder.cross_cache(options.kv_cache, rows)?;
        let mut batch = backend.batch(BatchCapacity { rows, segments: 1, selected: 0 })?;
        let mut x = backend.activations(rows, config.hidden_size, ActivationRole::Residual)?;
        let kv_width = 2 * decoder.config().kv_heads * decoder.config().head_size;
        let mut kv = backend.activations(rows, kv_width, ActivationRole::Intermediate)?;
        let mut scratch = block::scratch(backend, config, &self.blocks, rows)?;
        backend.set_batch(&mut batch, &[Segment { sequence: 0, position: 0, ids: &ids, length: rows }])?;
        let at = Context { backend, config, batch: &batch, cross_kv: None };
        let key = GraphKey { phase: Phase::Encode, rows, segments: 1, selected: 0 };
        backend.run(key, &batch, &mut || {
            self.embed(backend, tokens, &batch, &mut x)?;
            for (block, layer) in self.blocks.iter().zip(&places) {
                block.forward(&at, (*layer, &mut cache), &mut x, &mut scratch)?;
            }
            if let Some(norm) = &self.norm {
                backend.normalize(&mut x, norm)?;
            }
            decoder.write_cross_kv(&batch, &x, &mut kv, &mut cross_kv)
        })?;
        Session::new(decoder, Some(cross_kv), options)
    }

    /// The input of the blocks, without positions: `[positions, hidden_size]` of `spectrum [2·positions, bins]`.
    fn frames(&self, spectrum: ArrayView2<'_, f32>) -> Result<Array2<f32>, Error> {
        let mut frames = spectrum.to_owned();
        for convolution in &self.convolutions {
            frames = convolution.apply(frames.view())?;
        }
        self.check_length("the spectrum", "positions", frames.nrows(), self.config.max_positions)?;
        Ok(frames)
    }

    fn check_length(&self, what: &str, unit: &str, length: usize, least: usize) -> Result<(), Error> {
        let most = self.config.max_positions;
        if (least..=most).contains(&length) {
            return Ok(());
        }
        let expected = if least == most { most.to_string() } else { format!("{least} to {most}") };
        Err(Error::Input(format!("{what} has {length} {unit}; this model takes {expected}")))
    }

    /// `x [rows, hidden_size]` = the embedded source.
    fn embed(
        &self,
        backend: &B,
        tokens: &B::Embedding,
        batch: &B::Batch,
        x: &mut B::Activations,
    ) -> Result<(), Error> {
        let tokens = Some(tokens);
        let positions = self.positions.as_ref().map(|(table, offset)| (table, *offset));
        match self.config.embedding_scale {
            None => backend.embed(batch, tokens, positions, Output::Store(&mut *x))?,
            Some(factor) => {
                backend.embed(batch, tokens, None, Output::Store(&mut *x))?;
                backend.scale(x, Some(factor), None)?;
                if positions.is_some() {
                    backend.embed(batch, None, positions, Output::Add(&mut *x))?;
                }
            }
        }
        match &self.embedding_norm {
            Some(norm) => backend.normalize(x, norm),
            None => Ok(()),
        }
    }
}
