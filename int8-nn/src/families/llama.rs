//! LLaMA (Touvron et al., 2023), Mistral (sliding window), Qwen2 (biases on queries, keys and values) and Qwen3 (norms on
//! queries and keys): rotary positions, RMSNorm, gated SiLU, grouped-query attention.

use super::{Family, LayerNames, Module, TensorNames};
use crate::Error;
use crate::config::{
    AlternateAttention, Biases, BlockSet, DecoderConfig, NormKind, Positions, QueryKeyNorms, RawConfig,
    Rotary, RotaryDefaults, SizeKeys,
};

pub(crate) const FAMILY: Family =
    Family { model_types: &["llama", "mistral", "qwen2", "qwen3"], config, names };

/// With the window of Mistral and Qwen where the key is absent; null is none.
fn with_window(raw: &RawConfig) -> RawConfig {
    raw.with_defaults(&[("sliding_window", 4096.into())])
}

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let config = base(raw, RotaryDefaults::default())?;
    match raw.text_or("model_type", "llama")? {
        "mistral" => {
            let biases = Biases::blocks(false);
            let raw = &with_window(raw);
            windowed(raw, DecoderConfig { family: "mistral", biases, ..config }, BlockSet::From { first: 0 })
        }
        "qwen2" => {
            let biases = Biases { qkv: true, ..Biases::blocks(false) };
            qwen_windows(raw, DecoderConfig { family: "qwen2", biases, ..config })
        }
        "qwen3" => {
            let query_key_norms = Some(QueryKeyNorms::PerHead);
            qwen_windows(raw, DecoderConfig { family: "qwen3", query_key_norms, ..config })
        }
        _ => {
            let biases = Biases::of(raw.flag_or("attention_bias", false)?, raw.flag_or("mlp_bias", false)?);
            Ok(DecoderConfig { biases, ..config })
        }
    }?
    .validate(raw)
}

/// The keys that most families since LLaMA share.
pub(super) fn base(raw: &RawConfig, rotary: RotaryDefaults) -> Result<DecoderConfig, Error> {
    let sized = DecoderConfig::sized_by_head(raw, SizeKeys::default(), "head_dim")?;
    let rotary = Rotary::read(raw, sized.head_size, rotary)?;
    Ok(DecoderConfig {
        family: "llama",
        kv_heads: raw.size_or("num_key_value_heads", sized.heads)?,
        intermediate_size: raw.size("intermediate_size")?,
        max_positions: rotary.max_positions(raw.size_or("max_position_embeddings", 2048)?),
        norm: NormKind::RmsNorm,
        norm_eps: raw.float_or("rms_norm_eps", 1e-6)?,
        positions: Positions::Rotary(rotary),
        activation: raw.activation("hidden_act", "silu")?,
        gated_mlp: true,
        biases: Biases::of(raw.flag_or("attention_bias", false)?, false),
        ..sized
    })
}

/// `config` with the window `sliding_window`, if set, in the blocks that `layer_types` names, or else in `blocks`.
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

/// Qwen: the window holds only with `use_sliding_window`, from block `max_window_layers` on.
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
    windowed(&with_window(raw), config, BlockSet::From { first })
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    tensors(move |index| layer(index, &config))
}

/// LLaMA's names around blocks named by `layer`.
pub(super) fn tensors(layer: impl Fn(usize) -> LayerNames + 'static) -> TensorNames {
    TensorNames::new(&["model.", ""], "embed_tokens", "norm", layer)
}

/// Block `index`.
pub(super) fn module(index: usize) -> Module {
    Module::new(format!("layers.{index}"))
}

/// The names of LLaMA's block, with the norms of queries and keys if the family has them.
pub(super) fn layer(index: usize, config: &DecoderConfig) -> LayerNames {
    let block = module(index);
    let query_key_norms = || ["self_attn.q_norm", "self_attn.k_norm"].map(|norm| block.name(norm));
    LayerNames {
        query_key_norms: config.query_key_norms.map(|_| query_key_norms()),
        ..LayerNames::new(
            block.parts(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            block.part("self_attn.o_proj"),
            block.mlp(["mlp.gate_proj", "mlp.up_proj"], "mlp.down_proj"),
        )
        .norms(block.name("input_layernorm"), block.name("post_attention_layernorm"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Beyond the length of a golden: the window where the key is absent, and none where it is null.
    #[test]
    fn an_absent_window_is_the_default_and_a_null_one_is_none() {
        let window = |model_type: &str, window: Option<Value>| {
            let mut file = json!({
                "model_type": model_type, "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 2, "intermediate_size": 8, "use_sliding_window": true, "max_window_layers": 0,
            });
            if let Some(window) = window {
                file["sliding_window"] = window;
            }
            let raw = RawConfig::from_json("config.json".to_owned(), file).expect("an object");
            config(&raw).expect("a configuration").attention(0).1
        };
        for (model_type, default) in
            [("mistral", Some(4096)), ("qwen2", Some(4096)), ("qwen3", Some(4096)), ("llama", None)]
        {
            assert_eq!(window(model_type, None), default, "{model_type}");
            assert_eq!(window(model_type, Some(Value::Null)), None, "{model_type}");
        }
        assert_eq!(window("mistral", Some(json!(7))), Some(7));
    }
}
