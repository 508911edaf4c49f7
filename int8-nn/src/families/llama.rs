//! LLaMA (Touvron et al., 2023) and the families with its tensor names: Mistral (sliding window), Qwen2 (biases on queries,
//! keys and values) and Qwen3 (norms on queries and keys). Rotary positions, RMSNorm, gated SiLU, grouped-query attention.

use super::{Family, LayerNames, MlpNames, TensorNames};
use crate::Error;
use crate::config::{
    Activation, AlternateAttention, BlockSet, DecoderConfig, NormKind, Positions, QueryKeyNorms, RawConfig,
    Rotary, RotaryDefaults, head_size,
};
use crate::weights::Part;

pub(crate) const FAMILY: Family =
    Family { model_types: &["llama", "mistral", "qwen2", "qwen3"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let config = base(raw, RotaryDefaults::default())?;
    match raw.text_or("model_type", "llama")? {
        "mistral" => {
            windowed(raw, DecoderConfig { family: "mistral", ..config }, BlockSet::From { first: 0 })
        }
        "qwen2" => qwen_windows(raw, DecoderConfig { family: "qwen2", ..config }),
        "qwen3" => {
            let query_key_norms = Some(QueryKeyNorms::PerHead);
            qwen_windows(raw, DecoderConfig { family: "qwen3", query_key_norms, ..config })
        }
        _ => Ok(config),
    }?
    .validate(raw)
}

/// What most families since LLaMA say in the same keys.
pub(super) fn base(raw: &RawConfig, rotary: RotaryDefaults) -> Result<DecoderConfig, Error> {
    let hidden_size = raw.size("hidden_size")?;
    let heads = raw.size("num_attention_heads")?;
    let head_size = match raw.get("head_dim") {
        Some(_) => raw.size("head_dim")?,
        None => head_size(raw, "num_attention_heads", hidden_size, heads)?,
    };
    Ok(DecoderConfig {
        family: "llama",
        vocab_size: raw.size("vocab_size")?,
        hidden_size,
        layers: raw.size("num_hidden_layers")?,
        heads,
        kv_heads: raw.size_or("num_key_value_heads", heads)?,
        head_size,
        intermediate_size: raw.size("intermediate_size")?,
        max_positions: raw.size_or("max_position_embeddings", 2048)?,
        norm: NormKind::RmsNorm,
        norm_eps: crate::convert::f32_from(raw.positive_or("rms_norm_eps", 1e-6)?),
        positions: Positions::Rotary(Rotary::read(raw, head_size, rotary)?),
        activation: raw.activation("hidden_act", "silu")?,
        gated_mlp: true,
        tied_embeddings: raw.flag_or("tie_word_embeddings", false)?,
        embedding_size: hidden_size,
        eos_token_ids: raw.token_ids("eos_token_id")?,
        ..DecoderConfig::default()
    })
}

/// The same with a sliding window, if `sliding_window` is set, in the blocks that `layer_types` names, or else in `blocks`.
pub(super) fn windowed(
    raw: &RawConfig,
    config: DecoderConfig,
    blocks: BlockSet,
) -> Result<DecoderConfig, Error> {
    if raw.get("sliding_window").is_none() {
        return Ok(config);
    }
    let alternate = AlternateAttention {
        blocks: raw.sliding_blocks(config.layers, blocks)?,
        positions: config.positions.clone(),
        sliding_window: Some(raw.size("sliding_window")?),
    };
    Ok(DecoderConfig { alternate: Some(alternate), ..config })
}

/// The Qwen families write a window that they do not use unless told to, and then only in the later blocks.
pub(super) fn qwen_windows(raw: &RawConfig, config: DecoderConfig) -> Result<DecoderConfig, Error> {
    if !raw.flag_or("use_sliding_window", false)? {
        return Ok(config);
    }
    const FIRST: &str = "max_window_layers";
    let first = if raw.get(FIRST).and_then(serde_json::Value::as_u64) == Some(0) {
        0
    } else {
        raw.size_or(FIRST, 28)?
    };
    windowed(raw, config, BlockSet::From { first })
}

/// Gemma and some others have an older key for the activation.
pub(super) fn activation_of(
    raw: &RawConfig,
    keys: &[&str],
    default: Activation,
) -> Result<Activation, Error> {
    match keys.iter().find(|key| raw.get(key).is_some()) {
        Some(key) => raw.activation(key, ""),
        None => Ok(default),
    }
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    tensors(move |index| layer(index, &config))
}

/// The names of LLaMA around these blocks.
pub(super) fn tensors(layer: impl Fn(usize) -> LayerNames + 'static) -> TensorNames {
    TensorNames {
        roots: &["model.", ""],
        token_embedding: "embed_tokens",
        position_embedding: None,
        embedding_norm: None,
        project_in: None,
        project_out: None,
        final_norm: Some("norm"),
        head: "lm_head",
        layer: Box::new(layer),
    }
}

/// The name of a part of block `index`.
pub(super) fn name(index: usize, part: &str) -> String {
    format!("layers.{index}.{part}")
}

/// The names of LLaMA's blocks, with the norms of queries and keys in the families that have them.
pub(super) fn layer(index: usize, config: &DecoderConfig) -> LayerNames {
    let parts = |names: &[&str]| names.iter().map(|part| Part::new(&name(index, part))).collect();
    let query_key_norms = || ["self_attn.q_norm", "self_attn.k_norm"].map(|part| name(index, part));
    LayerNames {
        attention_norm: Some(name(index, "input_layernorm")),
        mlp_norm: Some(name(index, "post_attention_layernorm")),
        branch_norms: None,
        qkv: parts(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        query_key_norms: config.query_key_norms.map(|_| query_key_norms()),
        attention_output: Part::new(&name(index, "self_attn.o_proj")),
        mlp: MlpNames::Dense {
            up: parts(&["mlp.gate_proj", "mlp.up_proj"]),
            down: Part::new(&name(index, "mlp.down_proj")),
        },
    }
}
