//! GPT-Neo (Black et al., 2021): learned positions, LayerNorm, tanh-GELU, attention scores that are not divided, and every
//! other block with a window.

use serde_json::Value;

use super::{Family, LayerNames, TensorNames, gpt2};
use crate::Error;
use crate::config::{AlternateAttention, Biases, BlockSet, DecoderConfig, Positions, RawConfig, SizeKeys};

pub(crate) const FAMILY: Family = Family { model_types: &["gpt_neo"], config, names };

const KEYS: SizeKeys = SizeKeys { hidden: "hidden_size", layers: "num_layers", heads: "num_heads" };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let base = DecoderConfig::sized(raw, KEYS)?;
    let positions = Positions::Learned { offset: 0 };
    DecoderConfig {
        family: "gpt_neo",
        intermediate_size: raw.size_or("intermediate_size", base.intermediate_size)?,
        max_positions: raw.size_or("max_position_embeddings", 2048)?,
        norm_eps: raw.float_or("layer_norm_epsilon", 1e-5)?,
        alternate: Some(AlternateAttention {
            blocks: local_blocks(raw, base.layers)?,
            positions: positions.clone(),
            sliding_window: Some(raw.size_or("window_size", 256)?),
        }),
        positions,
        attention_divisor: Some(1.0),
        biases: Biases { qkv: false, ..Biases::blocks(true) },
        activation: raw.activation("activation_function", "gelu_new")?,
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        ..base
    }
    .validate(raw)
}

/// `attention_layers` names each block; `[[["global", "local"], 12]]` under `attention_types` repeats a pattern.
fn local_blocks(raw: &RawConfig, layers: usize) -> Result<BlockSet, Error> {
    const EACH: &str = "attention_layers";
    const PATTERN: &str = "attention_types";
    let (key, kinds, times) = match (raw.get(EACH), raw.get(PATTERN)) {
        (Some(kinds), _) => (EACH, kinds, Some(1)),
        (None, Some(pattern)) => match pattern.as_array().map(Vec::as_slice) {
            Some([Value::Array(entry)]) if entry.len() == 2 => (PATTERN, &entry[0], entry[1].as_u64()),
            _ => return Err(raw.problem(PATTERN, "is not of the form [[[\"global\", \"local\"], 12]]")),
        },
        (None, None) => return Ok(BlockSet::Marked(vec![false, true])),
    };
    let kinds = kinds.as_array().map(Vec::as_slice).unwrap_or_default();
    let local = |kind: &Value| match kind.as_str() {
        Some("local") => Ok(true),
        Some("global") => Ok(false),
        _ => Err(raw.problem(key, format!("has {kind}; expected \"global\" or \"local\""))),
    };
    let marks = kinds.iter().map(local).collect::<Result<Vec<bool>, Error>>()?;
    let blocks = times.and_then(|times| usize::try_from(times).ok()?.checked_mul(marks.len()));
    if blocks != Some(layers) {
        return Err(
            raw.problem(key, format!("does not name the attention of {layers} blocks, as many as there are"))
        );
    }
    Ok(BlockSet::Marked(marks))
}

fn names(_: &DecoderConfig) -> TensorNames {
    gpt2::tensors(|block| {
        LayerNames::new(
            block.parts(["attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"]),
            block.part("attn.attention.out_proj"),
            block.mlp(["mlp.c_fc"], "mlp.c_proj"),
        )
        .norms(block.name("ln_1"), block.name("ln_2"))
    })
}
