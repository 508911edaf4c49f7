//! The description of an encoder.

use super::DecoderConfig;

/// An encoder, as [`crate::encoder`] runs it.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// Embeddings and blocks, as of a decoder without head; every token sees all others.
    pub network: DecoderConfig,
    /// Rows of the token type embedding, if the family has one.
    pub token_types: usize,
    /// A table of positions is added to the token embedding, whatever positions enter attention by.
    pub position_table: bool,
    /// Rows of the position embedding before position 0.
    pub position_offset: usize,
    /// The blocks in the order in which they run, where some run several times; without it each runs once.
    pub order: Option<Vec<usize>>,
}

impl EncoderConfig {
    /// An encoder without token types and without a table of positions, each of whose blocks runs once.
    pub(crate) fn of(network: DecoderConfig) -> Self {
        Self { network, token_types: 0, position_table: false, position_offset: 0, order: None }
    }
}
