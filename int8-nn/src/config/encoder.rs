//! The description of an encoder.

use super::DecoderConfig;

/// An encoder, as [`crate::encoder`] runs it.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// Embeddings and blocks, as of a decoder without head; every token sees all others.
    pub network: DecoderConfig,
    /// Rows of the token type embedding, if the family has one.
    pub token_types: usize,
    /// Rows of the position embedding before position 0.
    pub position_offset: usize,
}
