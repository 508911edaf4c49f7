//! What a model with an encoder and a decoder is.

use super::DecoderConfig;

/// What a model is that reads one text and writes another.
#[derive(Debug, Clone, PartialEq)]
pub struct Seq2SeqConfig {
    /// The encoder's blocks, which see all of the source text; its embedding is the decoder's.
    pub encoder: DecoderConfig,
    /// The decoder. Each of its blocks attends to the encoder's output, too.
    pub decoder: DecoderConfig,
    /// The token that the decoder begins with.
    pub start_token: u32,
}
