//! What an encoder is.

use super::DecoderConfig;

/// What an encoder is, in the terms of the one implementation that runs them all.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// Embeddings and blocks, described like those of a decoder; there is no head, and every token sees all others.
    pub network: DecoderConfig,
    /// Rows of the token type embedding; of no meaning where the family has none.
    pub token_types: usize,
    /// Rows of the position embedding before position 0.
    pub position_offset: usize,
}
