//! The description of an encoder.

use super::{DecoderConfig, RawConfig};
use crate::Error;

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

/// Most positions of a model that has token types and no table of positions: each has a row of the token type's embedding.
const MOST_POSITIONS: usize = 1 << 17;

impl EncoderConfig {
    /// An encoder without token types and without a table of positions, each of whose blocks runs once.
    pub(crate) fn of(network: DecoderConfig) -> Self {
        Self { network, token_types: 0, position_table: false, position_offset: 0, order: None }
    }

    /// Refuses more positions than there is memory for.
    ///
    /// # Errors
    /// [`Error::Config`], naming the key of `raw`.
    pub(crate) fn validate(self, raw: &RawConfig) -> Result<Self, Error> {
        let positions = self.network.max_positions;
        if self.token_types > 0 && !self.position_table && positions > MOST_POSITIONS {
            return Err(raw.problem(
                "max_position_embeddings",
                format!(
                    "gives {positions} positions; with token types at most {MOST_POSITIONS} are implemented"
                ),
            ));
        }
        Ok(self)
    }
}
