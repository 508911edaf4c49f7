//! The description of an encoder-decoder.

use super::DecoderConfig;
use crate::Error;
use crate::backend::{Capabilities, Feature, Precision};

/// An encoder-decoder: reads a text or speech and writes a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Seq2SeqConfig {
    /// The encoder, which sees the whole source; of a text it has the decoder's embedding.
    pub encoder: DecoderConfig,
    /// The decoder, whose blocks also have cross-attention to the encoder's output.
    pub decoder: DecoderConfig,
    /// The decoder's first token.
    pub start_token: u32,
    /// The source is speech: bands of its log-mel spectrum.
    pub mel_bins: Option<usize>,
}

impl Seq2SeqConfig {
    /// Refuses a model that needs what a backend lacks.
    ///
    /// # Errors
    /// As [`Capabilities::accept`].
    pub(crate) fn accept(&self, capabilities: &Capabilities, precision: &Precision) -> Result<(), Error> {
        let speech = self.mel_bins.map(|_| Feature::Speech);
        let of_encoder: Vec<Feature> = speech.into_iter().chain([Feature::FullAttention]).collect();
        capabilities.accept(&self.encoder, precision, &of_encoder)?;
        capabilities.accept(&self.decoder, precision, &[Feature::CrossAttention, Feature::FullAttention])
    }
}
