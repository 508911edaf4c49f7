//! The sizes that every family's `config.json` has, under keys that differ.

use super::{DecoderConfig, RawConfig};
use crate::Error;

/// The keys of a family's sizes. The default is what most families have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SizeKeys {
    pub(crate) hidden: &'static str,
    pub(crate) layers: &'static str,
    pub(crate) heads: &'static str,
}

impl Default for SizeKeys {
    fn default() -> Self {
        Self { hidden: "hidden_size", layers: "num_hidden_layers", heads: "num_attention_heads" }
    }
}

impl DecoderConfig {
    /// The [default](Self::default) with its sizes (`kv_heads = heads`, `head_size = hidden_size / heads`,
    /// `intermediate_size = 4·hidden_size`, `embedding_size = hidden_size`), end tokens and `tie_word_embeddings` (false
    /// without the key).
    ///
    /// # Errors
    /// When a key is missing or no size, or `heads` does not divide `hidden_size`.
    pub(crate) fn sized(raw: &RawConfig, keys: SizeKeys) -> Result<Self, Error> {
        let (hidden_size, heads) = (raw.size(keys.hidden)?, raw.size(keys.heads)?);
        Self::with_end(raw, Self::with_heads(raw, keys, head_size(raw, keys.heads, hidden_size, heads)?)?)
    }

    /// [`sized`](Self::sized), with the head size under `key`, if present.
    pub(crate) fn sized_by_head(raw: &RawConfig, keys: SizeKeys, key: &str) -> Result<Self, Error> {
        match raw.get(key) {
            None => Self::sized(raw, keys),
            Some(_) => Self::with_end(raw, Self::with_heads(raw, keys, raw.size(key)?)?),
        }
    }

    /// [`sized`](Self::sized) for an encoder, which has neither head nor end tokens.
    pub(crate) fn sized_encoder(raw: &RawConfig, keys: SizeKeys) -> Result<Self, Error> {
        let (hidden_size, heads) = (raw.size(keys.hidden)?, raw.size(keys.heads)?);
        Self::with_heads(raw, keys, head_size(raw, keys.heads, hidden_size, heads)?)
    }

    fn with_heads(raw: &RawConfig, keys: SizeKeys, head_size: usize) -> Result<Self, Error> {
        let (hidden_size, heads) = (raw.size(keys.hidden)?, raw.size(keys.heads)?);
        Ok(Self {
            vocab_size: raw.size("vocab_size")?,
            hidden_size,
            layers: raw.size(keys.layers)?,
            heads,
            kv_heads: heads,
            head_size,
            intermediate_size: 4 * hidden_size,
            embedding_size: hidden_size,
            ..Self::default()
        })
    }

    fn with_end(raw: &RawConfig, config: Self) -> Result<Self, Error> {
        let tied_embeddings = raw.flag_or("tie_word_embeddings", false)?;
        Ok(Self { tied_embeddings, eos_token_ids: raw.token_ids("eos_token_id")?, ..config })
    }
}

/// Most layers of a model whose layers are listed one by one, far above the deepest one.
const MOST_LAYERS: usize = 16_384;

/// The number of layers, of a model whose layers are listed one by one.
pub(crate) fn listed_layers(raw: &RawConfig, key: &str) -> Result<usize, Error> {
    match raw.size(key)? {
        layers if layers > MOST_LAYERS => {
            Err(raw.problem(key, format!("is {layers}; at most {MOST_LAYERS} are implemented")))
        }
        layers => Ok(layers),
    }
}

/// `hidden_size / heads`, checked.
fn head_size(raw: &RawConfig, key: &str, hidden_size: usize, heads: usize) -> Result<usize, Error> {
    if hidden_size.is_multiple_of(heads) {
        Ok(hidden_size / heads)
    } else {
        Err(raw.problem(key, format!("is {heads}; it must divide the hidden size {hidden_size}")))
    }
}
