//! The model families. Each file maps one family's `config.json` and tensor names onto [`DecoderConfig`] and
//! its tensor names; what a decoder computes stands once, in [`crate::decoder`]. A new family is one file here, one line
//! in `FAMILIES` and one golden.

mod bloom;
mod gpt2;
mod gpt_neox;
mod llama;
mod opt;

use crate::Error;
use crate::config::{DecoderConfig, RawConfig};
use crate::weights::{Part, Rows};

/// One family.
pub(crate) struct Family {
    /// Values of `model_type` it answers to.
    pub(crate) model_types: &'static [&'static str],
    /// Reads `config.json`.
    pub(crate) config: fn(&RawConfig) -> Result<DecoderConfig, Error>,
    /// Names the tensors.
    pub(crate) names: fn(&DecoderConfig) -> TensorNames,
}

/// All families this crate runs.
pub(crate) const FAMILIES: &[&Family] =
    &[&opt::FAMILY, &llama::FAMILY, &gpt2::FAMILY, &bloom::FAMILY, &gpt_neox::FAMILY];

/// The names of a decoder's tensors. All but `head` follow one of `roots`, whichever the checkpoint has: the same model
/// is saved with and without the name of its outer module.
pub(crate) struct TensorNames {
    pub(crate) roots: &'static [&'static str],
    pub(crate) token_embedding: &'static str,
    pub(crate) position_embedding: Option<&'static str>,
    pub(crate) embedding_norm: Option<&'static str>,
    pub(crate) project_in: Option<&'static str>,
    pub(crate) project_out: Option<&'static str>,
    pub(crate) final_norm: Option<&'static str>,
    pub(crate) head: &'static str,
    pub(crate) layer: Box<dyn Fn(usize) -> LayerNames>,
}

/// The names of one block's tensors; each linear layer may be stacked from several parts along its outputs.
pub(crate) struct LayerNames {
    pub(crate) attention_norm: String,
    pub(crate) mlp_norm: String,
    /// Queries, keys, values, in this order.
    pub(crate) qkv: Vec<Part>,
    pub(crate) attention_output: Part,
    /// The gate, if there is one, and then the expansion.
    pub(crate) up: Vec<Part>,
    pub(crate) down: Part,
}

/// Finds the family of a checkpoint.
pub(crate) fn of(raw: &RawConfig) -> Result<&'static Family, Error> {
    let model_type = raw.text_or("model_type", "")?;
    if model_type.is_empty() {
        return Err(raw.problem("model_type", "is missing; it names the model family"));
    }
    FAMILIES.iter().copied().find(|family| family.model_types.contains(&model_type)).ok_or_else(|| {
        Error::UnknownFamily {
            file: raw.file().to_owned(),
            model_type: model_type.escape_debug().to_string(),
            supported: supported().join(", "),
        }
    })
}

/// Every `model_type` that runs.
pub fn supported() -> Vec<&'static str> {
    FAMILIES.iter().flat_map(|family| family.model_types).copied().collect()
}

/// The three parts of a fused projection `[heads·3·head_size, K]` whose rows go head by head, each head's query, key and
/// value rows together (BLOOM, GPT-NeoX), as queries, keys, values.
pub(crate) fn interleaved_qkv(name: &str, config: &DecoderConfig) -> Vec<Part> {
    let (heads, size) = (config.heads, config.head_size);
    (0..3)
        .map(|which| {
            let rows =
                (0..heads).flat_map(|head| (0..size).map(move |d| (head * 3 + which) * size + d)).collect();
            Part::new(name).rows(Rows::Gather { rows, of: heads * 3 * size })
        })
        .collect()
}
