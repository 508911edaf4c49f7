//! GPT-Neo (Black et al., 2021): learned positions, LayerNorm, tanh-GELU, attention scores that are not divided, and every
//! other block with a window.

use serde_json::Value;

use super::{Family, LayerNames, MlpNames, TensorNames};
use crate::Error;
use crate::config::{AlternateAttention, BlockSet, DecoderConfig, Positions, RawConfig, head_size};
use crate::weights::Part;

pub(crate) const FAMILY: Family = Family { model_types: &["gpt_neo"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let hidden_size = raw.size("hidden_size")?;
    let heads = raw.size("num_heads")?;
    let layers = raw.size("num_layers")?;
    DecoderConfig {
        family: "gpt_neo",
        vocab_size: raw.size("vocab_size")?,
        hidden_size,
        layers,
        heads,
        kv_heads: heads,
        head_size: head_size(raw, "num_heads", hidden_size, heads)?,
        intermediate_size: raw.size_or("intermediate_size", 4 * hidden_size)?,
        max_positions: raw.size_or("max_position_embeddings", 2048)?,
        norm_eps: crate::convert::f32_from(raw.positive_or("layer_norm_epsilon", 1e-5)?),
        positions: Positions::Learned { offset: 0 },
        alternate: Some(AlternateAttention {
            blocks: local_blocks(raw, layers)?,
            positions: Positions::Learned { offset: 0 },
            sliding_window: Some(raw.size_or("window_size", 256)?),
        }),
        attention_divisor: Some(1.0),
        activation: raw.activation("activation_function", "gelu_new")?,
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        embedding_size: hidden_size,
        eos_token_ids: raw.token_ids("eos_token_id")?,
        ..DecoderConfig::default()
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
    TensorNames {
        roots: &["transformer.", ""],
        token_embedding: "wte",
        position_embedding: Some("wpe"),
        embedding_norm: None,
        project_in: None,
        project_out: None,
        final_norm: Some("ln_f"),
        head: "lm_head",
        layer: Box::new(|layer| {
            let name = |part: &str| format!("h.{layer}.{part}");
            LayerNames {
                attention_norm: Some(name("ln_1")),
                mlp_norm: Some(name("ln_2")),
                branch_norms: None,
                qkv: ["q_proj", "k_proj", "v_proj"]
                    .map(|part| Part::new(&name(&format!("attn.attention.{part}"))))
                    .into(),
                query_key_norms: None,
                attention_output: Part::new(&name("attn.attention.out_proj")),
                mlp: MlpNames::Dense {
                    up: vec![Part::new(&name("mlp.c_fc"))],
                    down: Part::new(&name("mlp.c_proj")),
                },
            }
        }),
    }
}
