//! LLaMA (Touvron et al., 2023), Mistral (sliding window), Qwen2 (biases on queries, keys and values) and Qwen3 (norms on
//! queries and keys): rotary positions, RMSNorm, gated SiLU, grouped-query attention.

use serde_json::json;

use super::{Family, LayerNames, Module, TensorNames};
use crate::Error;
use crate::config::{
    AlternateAttention, Biases, BlockSet, DecoderConfig, NormKind, Positions, QueryGrowth, QueryKeyNorms,
    RawConfig, Rotary, RotaryDefaults, SizeKeys,
};

pub(crate) const FAMILY: Family =
    Family { model_types: &["llama", "mistral", "qwen2", "qwen3"], config, names };

/// With the window of Mistral and Qwen where the key is absent; null is none.
fn with_window(raw: &RawConfig) -> RawConfig {
    raw.with_defaults(&[("sliding_window", 4096.into())])
}

/// Families that are LLaMA but for defaults of their configuration.
pub(crate) const ALIASES: Family = Family {
    model_types: &["seed_oss", "internlm3", "iquestcoder", "ministral", "ministral3", "cwm"],
    config: alias,
    names,
};

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

fn alias(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    match raw.text_or("model_type", "")? {
        "seed_oss" => seed(raw),
        "internlm3" => internlm(raw),
        "ministral" => ministral(raw),
        "ministral3" => ministral3(raw),
        "cwm" => cwm(raw),
        _ => iquest(raw),
    }?
    .validate(raw)
}

/// Biases of attention and of the MLP, each by its key.
fn usual_biases(raw: &RawConfig) -> Result<Biases, Error> {
    Ok(Biases::of(raw.flag_or("attention_bias", false)?, raw.flag_or("mlp_bias", false)?))
}

/// Seed-OSS (ByteDance, 2025).
fn seed(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("head_dim", json!(128)),
        ("num_key_value_heads", json!(8)),
        ("max_position_embeddings", json!(524_288)),
    ]);
    let mlp = raw.flag_or("mlp_bias", false)?;
    let biases = Biases {
        qkv: raw.flag_or("attention_bias", true)?,
        attention_output: raw.flag_or("attention_out_bias", false)?,
        ..Biases::of(false, mlp)
    };
    Ok(DecoderConfig { family: "seed_oss", biases, ..base(raw, RotaryDefaults::default())? })
}

/// InternLM 3 (Shanghai AI Laboratory, 2025).
fn internlm(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.renamed("qkv_bias", "attention_bias").renamed("bias", "mlp_bias").with_defaults(&[
        ("head_dim", json!(128)),
        ("num_key_value_heads", json!(2)),
        ("rms_norm_eps", json!(1e-5)),
        ("max_position_embeddings", json!(32768)),
    ]);
    let biases = usual_biases(raw)?;
    Ok(DecoderConfig { family: "internlm3", biases, ..base(raw, RotaryDefaults::default())? })
}

/// IQuest-Coder (2026).
fn iquest(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("head_dim", json!(128)),
        ("num_key_value_heads", json!(8)),
        ("rms_norm_eps", json!(1e-5)),
        ("max_position_embeddings", json!(131_072)),
    ]);
    for key in ["clip_qkv", "use_sliding_window"] {
        if raw.get(key).is_some_and(|value| value.as_bool() != Some(false)) {
            return Err(raw.problem(key, "is set; this family has none"));
        }
    }
    let biases = usual_biases(raw)?;
    Ok(DecoderConfig { family: "iquestcoder", biases, ..base(raw, RotaryDefaults::default())? })
}

/// Ministral (Mistral AI, 2024): blocks with and without a window.
fn ministral(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("num_key_value_heads", json!(8)),
        ("max_position_embeddings", json!(131_072)),
        ("sliding_window", json!(4096)),
    ]);
    let base = base(raw, RotaryDefaults::default())?;
    let config = DecoderConfig { family: "ministral", biases: Biases::blocks(false), ..base };
    windowed(raw, config, BlockSet::From { first: 0 })
}

/// Ministral 3 (Mistral AI, 2025): queries grow with their position.
fn ministral3(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    const KEY: &str = "rope_parameters";
    const BETA: &str = "llama_4_scaling_beta";
    const PERIOD: &str = "original_max_position_embeddings";
    let raw = &raw.with_defaults(&[
        ("head_dim", json!(128)),
        ("num_key_value_heads", json!(8)),
        ("rms_norm_eps", json!(1e-5)),
        ("max_position_embeddings", json!(262_144)),
    ]);
    let base = base(raw, RotaryDefaults::default())?;
    let parameters = raw.section(KEY)?;
    if raw.get(KEY).is_none() || parameters.get(BETA).is_none() || parameters.get(PERIOD).is_none() {
        return Err(raw.problem(KEY, format!("has no `{BETA}` or no `{PERIOD}`, which queries grow by")));
    }
    let growth =
        QueryGrowth { beta: parameters.float_or(BETA, 0.0)?, period: parameters.size(PERIOD)?, offset: 0 };
    let all = || BlockSet::From { first: 0 };
    let windows = match raw.get("sliding_window") {
        Some(_) => Some((all(), raw.size("sliding_window")?)),
        None => None,
    };
    Ok(DecoderConfig {
        family: "ministral3",
        biases: Biases::blocks(false),
        query_growth: Some((all(), growth)),
        windows,
        ..base
    })
}

/// Code World Model (Meta, 2025): a window in three of four blocks.
fn cwm(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("head_dim", json!(128)),
        ("num_key_value_heads", json!(8)),
        ("rms_norm_eps", json!(1e-5)),
        ("max_position_embeddings", json!(131_072)),
        ("sliding_window", json!(8192)),
    ]);
    let scaled = raw.get("rope_parameters").is_some() || raw.get("rope_scaling").is_some();
    let raw = &if scaled { raw.clone() } else { raw.with_defaults(&[("rope_parameters", cwm_rotary())]) };
    let base = base(raw, RotaryDefaults { theta: 1_000_000.0, ..RotaryDefaults::default() })?;
    let mlp = raw.flag_or("mlp_bias", false)?;
    let marks = (0..base.layers).map(|layer| !layer.is_multiple_of(4)).collect();
    windowed(
        raw,
        DecoderConfig { family: "cwm", biases: Biases::of(false, mlp), ..base },
        BlockSet::Marked(marks),
    )
}

fn cwm_rotary() -> serde_json::Value {
    json!({
        "rope_type": "llama3",
        "rope_theta": 1_000_000.0,
        "factor": 16.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    })
}

/// The rotary settings of the blocks that `layer_types` calls `kind`, below their own key of `rope_parameters`.
pub(super) fn rotary_of(raw: &RawConfig, kind: &str, defaults: RotaryDefaults) -> Result<Rotary, Error> {
    const KEY: &str = "rope_parameters";
    let head_size = DecoderConfig::sized_by_head(raw, SizeKeys::default(), "head_dim")?.head_size;
    let parameters = raw.get(KEY).and_then(|parameters| parameters.get(kind));
    Rotary::read_from(raw, &format!("{KEY}.{kind}"), parameters, head_size, defaults)
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

/// Names of LLaMA's tensors.
pub(super) fn names(config: &DecoderConfig) -> TensorNames {
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
