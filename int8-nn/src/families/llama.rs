//! LLaMA (Touvron et al., 2023) and the families with its tensor names: Mistral (sliding window) and Qwen2 (biases on
//! queries, keys and values). Rotary positions, RMSNorm, gated SiLU, grouped-query attention.

use serde_json::Value;

use super::{Family, LayerNames, TensorNames};
use crate::Error;
use crate::config::{
    BlockKind, DecoderConfig, NormKind, Positions, RawConfig, Rotary, RotaryPrecision, RotaryScaling,
    head_size,
};
use crate::weights::Part;

pub(crate) const FAMILY: Family = Family { model_types: &["llama", "mistral", "qwen2"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let hidden_size = raw.size("hidden_size")?;
    let heads = raw.size("num_attention_heads")?;
    let head_size = match raw.get("head_dim") {
        Some(_) => raw.size("head_dim")?,
        None => head_size(raw, "num_attention_heads", hidden_size, heads)?,
    };
    // Qwen2 writes a window that it does not use unless told to; Mistral uses the one it writes.
    let windowed = raw.flag_or("use_sliding_window", raw.text_or("model_type", "")? == "mistral")?;
    let sliding_window = if windowed && raw.get("sliding_window").is_some() {
        Some(raw.size("sliding_window")?)
    } else {
        None
    };
    if windowed && sliding_window.is_some() && raw.size_or("max_window_layers", 0)? > 0 {
        return Err(raw.problem(
            "max_window_layers",
            "gives some layers a sliding window and some not, which is not supported",
        ));
    }
    DecoderConfig {
        family: match raw.text_or("model_type", "llama")? {
            "mistral" => "mistral",
            "qwen2" => "qwen2",
            _ => "llama",
        },
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
        block: BlockKind::PreNorm,
        positions: Positions::Rotary(rotary(raw, head_size)?),
        activation: raw.activation("hidden_act", "silu")?,
        gated_mlp: true,
        sliding_window,
        tied_embeddings: raw.flag_or("tie_word_embeddings", false)?,
        embedding_size: hidden_size,
        eos_token_ids: raw.token_ids("eos_token_id")?,
    }
    .validate(raw)
}

/// Rotary settings: transformers 5 keeps them under `rope_parameters`, earlier ones in `rope_theta` and `rope_scaling`.
pub(super) fn rotary(raw: &RawConfig, head_size: usize) -> Result<Rotary, Error> {
    let nested = raw.get("rope_parameters");
    let theta = match nested.and_then(|parameters| parameters.get("rope_theta")) {
        Some(theta) => raw.positive("rope_parameters.rope_theta", theta)?,
        None => raw.positive_or("rope_theta", 10_000.0)?,
    };
    let partial = match nested.and_then(|parameters| parameters.get("partial_rotary_factor")) {
        Some(factor) => raw.positive("rope_parameters.partial_rotary_factor", factor)?,
        None => raw.positive_or("partial_rotary_factor", raw.positive_or("rotary_pct", 1.0)?)?,
    };
    let (key, scaling) = match nested {
        Some(parameters) => ("rope_parameters", Some(parameters)),
        None => ("rope_scaling", raw.get("rope_scaling")),
    };
    Ok(Rotary {
        dims: crate::convert::fraction_of(head_size, partial),
        theta,
        scaling: scaling.map_or(Ok(RotaryScaling::None), |scaling| rotary_scaling(raw, key, scaling))?,
        precision: RotaryPrecision::F32,
    })
}

fn rotary_scaling(raw: &RawConfig, key: &str, scaling: &Value) -> Result<RotaryScaling, Error> {
    let kind =
        scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str).unwrap_or("default");
    let number = |name: &str| match scaling.get(name) {
        Some(value) => raw.positive(&format!("{key}.{name}"), value),
        None => {
            Err(raw.problem(&format!("{key}.{name}"), format!("is missing; rope type {kind:?} needs it")))
        }
    };
    match kind {
        "default" => Ok(RotaryScaling::None),
        "linear" => Ok(RotaryScaling::Linear { factor: number("factor")? }),
        "llama3" => Ok(RotaryScaling::Llama3 {
            factor: number("factor")?,
            low_factor: number("low_freq_factor")?,
            high_factor: number("high_freq_factor")?,
            original_positions: number("original_max_position_embeddings")?,
        }),
        other => {
            Err(raw.problem(key, format!("has rope type {other:?}; implemented: default, linear, llama3")))
        }
    }
}

fn names(_: &DecoderConfig) -> TensorNames {
    TensorNames {
        roots: &["model.", ""],
        token_embedding: "embed_tokens",
        position_embedding: None,
        embedding_norm: None,
        project_in: None,
        project_out: None,
        final_norm: Some("norm"),
        head: "lm_head",
        layer: Box::new(|layer| {
            let name = |part: &str| format!("layers.{layer}.{part}");
            LayerNames {
                attention_norm: name("input_layernorm"),
                mlp_norm: name("post_attention_layernorm"),
                qkv: ["q_proj", "k_proj", "v_proj"]
                    .map(|part| Part::new(&name(&format!("self_attn.{part}"))))
                    .into(),
                attention_output: Part::new(&name("self_attn.o_proj")),
                up: ["gate_proj", "up_proj"].map(|part| Part::new(&name(&format!("mlp.{part}")))).into(),
                down: Part::new(&name("mlp.down_proj")),
            }
        }),
    }
}
