//! LLaMA with interleaved rotary pairs: GLM-4 (Zhipu, 2024, 2025), Helium (Kyutai, 2025) and ERNIE 4.5 (Baidu, 2025), which may
//! have a mixture of experts.

use serde_json::json;

use super::llama::{self, layer};
use super::{Family, LayerNames, TensorNames, deinterleaved, moe};
use crate::Error;
use crate::config::{Biases, DecoderConfig, ExpertsConfig, RawConfig, RotaryDefaults};

pub(crate) const FAMILY: Family =
    Family { model_types: &["glm", "glm4", "helium", "ernie4_5", "ernie4_5_moe"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    match raw.text_or("model_type", "")? {
        "helium" => helium(raw),
        "ernie4_5" | "ernie4_5_moe" => ernie(raw),
        _ => glm(raw),
    }?
    .validate(raw)
}

fn glm(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("head_dim", json!(128)),
        ("num_key_value_heads", json!(2)),
        ("rms_norm_eps", json!(1.562_5e-7)),
        ("max_position_embeddings", json!(131_072)),
    ]);
    let base = llama::base(raw, RotaryDefaults { share: 0.5, partial: true, ..RotaryDefaults::default() })?;
    Ok(DecoderConfig {
        family: "glm",
        branch_norms: raw.text_or("model_type", "")? == "glm4",
        biases: Biases { qkv: raw.flag_or("attention_bias", true)?, ..Biases::blocks(false) },
        ..base
    })
}

fn helium(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("head_dim", json!(128)),
        ("num_key_value_heads", json!(20)),
        ("rms_norm_eps", json!(1e-8)),
        ("max_position_embeddings", json!(4096)),
    ]);
    let base = llama::base(raw, RotaryDefaults { theta: 100_000.0, ..RotaryDefaults::default() })?;
    let (attention, mlp) = (raw.flag_or("attention_bias", false)?, raw.flag_or("mlp_bias", false)?);
    let biases = Biases { attention_output: false, ..Biases::of(attention, mlp) };
    Ok(DecoderConfig { family: "helium", biases, ..base })
}

fn ernie(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let mixture = raw.text_or("model_type", "")? == "ernie4_5_moe";
    let raw = &raw.with_defaults(&[
        ("num_key_value_heads", json!(if mixture { 4 } else { 2 })),
        ("rms_norm_eps", json!(1e-5)),
        ("tie_word_embeddings", json!(true)),
        ("max_position_embeddings", json!(131_072)),
    ]);
    let raw = &if mixture { raw.clone() } else { raw.with_defaults(&[("head_dim", json!(128))]) };
    let base = llama::base(raw, RotaryDefaults { theta: 500_000.0, ..RotaryDefaults::default() })?;
    let all = raw.flag_or("use_bias", false)?;
    let biases = Biases { head: all && mixture, ..Biases::blocks(all) };
    let experts = if mixture { Some(ernie_experts(raw, base.layers)?) } else { None };
    Ok(DecoderConfig { family: "ernie4_5", biases, experts, ..base })
}

fn ernie_experts(raw: &RawConfig, layers: usize) -> Result<ExpertsConfig, Error> {
    let intermediate_size = raw.size_or("moe_intermediate_size", 1536)?;
    let start = raw.index_or("moe_layer_start_index", 1)?;
    const END: &str = "moe_layer_end_index";
    let end = match raw.get(END).and_then(serde_json::Value::as_i64) {
        None | Some(-1) => layers,
        Some(_) => raw.index_or(END, 0)? + 1,
    };
    Ok(ExpertsConfig {
        count: raw.size_or("moe_num_experts", 64)?,
        chosen: raw.size_or("moe_k", 6)?,
        normalized: true,
        correction: true,
        intermediate_size,
        shared_intermediate_size: moe::shared(raw, "moe_num_shared_experts", 2, intermediate_size)?,
        period: raw.size_or("moe_layer_interval", 1)?,
        dense_blocks: (0..layers).filter(|layer| !(start..end).contains(layer)).collect(),
        ..ExpertsConfig::default()
    })
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| {
        let block = llama::module(index);
        let plain = rotated(index, &config);
        let norms = ["post_self_attn_layernorm", "post_mlp_layernorm"];
        LayerNames {
            branch_norms: config.branch_norms.then(|| norms.map(|norm| block.name(norm))),
            mlp: match &config.experts {
                Some(experts) if experts.in_block(index) => moe::Names {
                    correction: "mlp.moe_statics.e_score_correction_bias",
                    ..moe::Names::default()
                }
                .of(index, experts),
                _ if config.family == "glm" => block.mlp(["mlp.gate_up_proj"], "mlp.down_proj"),
                _ => plain.mlp,
            },
            ..plain
        }
    })
}

/// The names of LLaMA's block, with queries and keys reordered.
pub(super) fn rotated(index: usize, config: &DecoderConfig) -> LayerNames {
    let block = llama::module(index);
    let rotated = |name: &str, heads| deinterleaved(&block.name(name), heads, config);
    LayerNames {
        qkv: vec![
            rotated("self_attn.q_proj", config.heads),
            rotated("self_attn.k_proj", config.kv_heads),
            block.part("self_attn.v_proj"),
        ],
        ..layer(index, config)
    }
}
