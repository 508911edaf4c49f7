//! The description of an encoder-decoder.

use super::DecoderConfig;

/// An encoder-decoder: reads a text and writes another.
#[derive(Debug, Clone, PartialEq)]
pub struct Seq2SeqConfig {
    /// The encoder, which sees the whole source text and shares the decoder's embedding.
    pub encoder: DecoderConfig,
    /// The decoder, whose blocks also have cross-attention to the encoder's output.
    pub decoder: DecoderConfig,
    /// The decoder's first token.
    pub start_token: u32,
}
