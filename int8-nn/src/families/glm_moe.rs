//! LLaMA with DeepSeek-V3's mixture of experts: GLM-4.5 (Zhipu, 2025), dots.llm1 (rednote, 2025), Solar Open (Upstage, 2025),
//! K-EXAONE (LG, 2025), Hunyuan 3 (Tencent), MiniMax-M2 (2025), Sarvam, Mellum 2.

use serde_json::json;

use super::llama::{self, layer};
use super::{Family, LayerNames, TensorNames, exaone, moe};
use crate::Error;
use crate::config::{
    AlternateAttention, Biases, BlockSet, DecoderConfig, ExpertsConfig, Positions, QueryKeyNorms, RawConfig,
    RotaryDefaults, Scores,
};
use crate::weights::{Part, Rows};

pub(crate) const FAMILY: Family = Family {
    model_types: &[
        "glm4_moe",
        "dots1",
        "solar_open",
        "exaone_moe",
        "hy_v3",
        "minimax_m2",
        "sarvam_moe",
        "mellum",
        "kolibri1",
    ],
    config,
    names,
};

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    match raw.text_or("model_type", "")? {
        "dots1" => dots(raw),
        "solar_open" => solar(raw),
        "exaone_moe" => exaone_moe(raw),
        "hy_v3" => hunyuan(raw),
        "minimax_m2" => minimax(raw),
        "sarvam_moe" => sarvam(raw),
        "mellum" => mellum(raw),
        "kolibri1" => kolibri(raw),
        _ => glm(raw),
    }?
    .validate(raw)
}

/// A share of each head that is rotated.
const fn partial(theta: f64, share: f64) -> RotaryDefaults {
    RotaryDefaults { theta, share, partial: true }
}

fn per_head(yes: bool) -> Option<QueryKeyNorms> {
    yes.then_some(QueryKeyNorms::PerHead)
}

fn glm(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("num_key_value_heads", json!(8)),
        ("rms_norm_eps", json!(1e-5)),
        ("first_k_dense_replace", json!(1)),
        ("max_position_embeddings", json!(131_072)),
    ]);
    let base = llama::base(raw, partial(10_000.0, 0.5))?;
    Ok(DecoderConfig {
        family: "glm4_moe",
        query_key_norms: per_head(raw.flag_or("use_qk_norm", false)?),
        biases: Biases { attention_output: false, ..base.biases },
        experts: Some(moe::deepseek(raw)?),
        ..base
    })
}

fn sarvam(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("head_dim", json!(64)),
        ("num_key_value_heads", json!(4)),
        ("first_k_dense_replace", json!(1)),
        ("routed_scaling_factor", json!(2.5)),
        ("max_position_embeddings", json!(131_072)),
    ]);
    for (key, other) in [
        ("num_experts", "n_routed_experts"),
        ("num_shared_experts", "n_shared_experts"),
        ("use_qkv_bias", "attention_bias"),
    ] {
        if raw.get(key).is_some() && raw.get(other).is_none() {
            return Err(
                raw.problem(key, format!("is given without `{other}`, as older files do; not implemented"))
            );
        }
    }
    let base = llama::base(raw, partial(8_000_000.0, 1.0))?;
    Ok(DecoderConfig {
        family: "sarvam_moe",
        query_key_norms: per_head(raw.flag_or("use_qk_norm", true)?),
        biases: Biases { attention_output: false, ..base.biases },
        experts: Some(moe::deepseek(raw)?),
        ..base
    })
}

fn solar(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("head_dim", json!(128)),
        ("num_key_value_heads", json!(8)),
        ("rms_norm_eps", json!(1e-5)),
        ("max_position_embeddings", json!(131_072)),
        // All blocks have experts.
        ("intermediate_size", json!(1)),
    ]);
    let base = llama::base(raw, partial(1_000_000.0, 1.0))?;
    let experts = ExpertsConfig { dense_blocks: Vec::new(), ..moe::deepseek(raw)? };
    Ok(DecoderConfig {
        family: "solar_open",
        biases: Biases { attention_output: false, ..base.biases },
        intermediate_size: experts.intermediate_size,
        experts: Some(experts),
        ..base
    })
}

fn dots(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("norm_topk_prob", json!(false)),
        ("n_shared_experts", json!(0)),
        ("sliding_window", json!(4096)),
    ]);
    let base = llama::base(raw, RotaryDefaults::default())?;
    let first = raw.index_or("max_window_layers", 62)?;
    let config = DecoderConfig {
        family: "dots1",
        query_key_norms: per_head(true),
        experts: Some(moe::deepseek(raw)?),
        ..base
    };
    llama::windowed(raw, config, BlockSet::From { first })
}

fn exaone_moe(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("num_key_value_heads", json!(32)),
        ("rms_norm_eps", json!(1e-5)),
        ("sliding_window", json!(4096)),
        ("routed_scaling_factor", json!(2.5)),
    ]);
    let base = llama::base(raw, RotaryDefaults::default())?;
    let intermediate_size = raw.size_or("moe_intermediate_size", 1024)?;
    let first = raw.index_or("first_k_dense_replace", 1)?;
    let experts = ExpertsConfig {
        count: raw.size_or("num_experts", 64)?,
        chosen: raw.size_or("num_experts_per_tok", 8)?,
        intermediate_size,
        shared_intermediate_size: moe::shared(raw, "num_shared_experts", 1, intermediate_size)?,
        dense_blocks: moe::dense_blocks(raw, base.layers, first)?,
        ..moe::sigmoid(raw)?
    };
    let config = DecoderConfig {
        family: "exaone_moe",
        query_key_norms: per_head(true),
        biases: Biases::blocks(false),
        experts: Some(experts),
        ..base
    };
    exaone::rotated_in_windows(raw, config)
}

fn kolibri(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("head_dim", json!(128)),
        ("num_key_value_heads", json!(4)),
        ("sliding_window", json!(513)),
        ("sliding_window_pattern", json!(5)),
        ("max_position_embeddings", json!(262_144)),
        ("intermediate_size", json!(1)),
    ]);
    let base = llama::base(raw, RotaryDefaults::default())?;
    let experts = ExpertsConfig {
        count: moe::count(raw, 384)?,
        chosen: raw.size_or("num_experts_per_tok", 6)?,
        normalized: raw.flag_or("norm_topk_prob", false)?,
        scores: Scores::SigmoidOfLogits,
        correction: true,
        intermediate_size: raw.size_or("moe_intermediate_size", 512)?,
        shared_intermediate_size: Some(raw.size_or("shared_expert_intermediate_size", 512)?),
        ..ExpertsConfig::default()
    };
    let config = DecoderConfig {
        family: "kolibri1",
        query_key_norms: per_head(true),
        branch_norms: true,
        biases: Biases::blocks(false),
        intermediate_size: experts.intermediate_size,
        experts: Some(experts),
        ..base
    };
    exaone::rotated_in_windows(raw, config)
}

fn hunyuan(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("head_dim", json!(128)),
        ("num_key_value_heads", json!(8)),
        ("rms_norm_eps", json!(1e-5)),
        ("max_position_embeddings", json!(131_072)),
    ]);
    let base = llama::base(raw, RotaryDefaults { theta: 11_158_840.0, ..RotaryDefaults::default() })?;
    let intermediate_size = raw.size_or("moe_intermediate_size", 1536)?;
    let experts = ExpertsConfig {
        count: moe::count(raw, 192)?,
        chosen: raw.size_or("num_experts_per_tok", 8)?,
        normalized: true,
        scores: Scores::Sigmoid,
        correction: true,
        scale: raw.float_or("router_scaling_factor", 2.826)?,
        intermediate_size,
        shared_intermediate_size: moe::shared(raw, "num_shared_experts", 1, intermediate_size)?,
        dense_blocks: moe::dense_blocks(raw, base.layers, 1)?,
        ..ExpertsConfig::default()
    };
    if raw.flag_or("mlp_bias", false)? {
        return Err(raw.problem(
            "mlp_bias",
            "is true; dense blocks and shared experts with biases are not implemented",
        ));
    }
    Ok(DecoderConfig { family: "hy_v3", query_key_norms: per_head(true), experts: Some(experts), ..base })
}

fn minimax(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("head_dim", json!(128)),
        ("num_key_value_heads", json!(8)),
        ("max_position_embeddings", json!(196_608)),
    ]);
    let head_size = raw.size("head_dim")?;
    let rotated = crate::convert::f64_from(raw.size_or("rotary_dim", head_size)?);
    let share = rotated / crate::convert::f64_from(head_size);
    let base = llama::base(raw, partial(5_000_000.0, share))?;
    let count = if raw.get("num_local_experts").is_some() { "num_local_experts" } else { "num_experts" };
    let experts = ExpertsConfig {
        count: raw.size_or(count, 256)?,
        chosen: raw.size_or("num_experts_per_tok", 8)?,
        normalized: true,
        scores: Scores::Sigmoid,
        correction: true,
        intermediate_size: base.intermediate_size,
        ..ExpertsConfig::default()
    };
    Ok(DecoderConfig {
        family: "minimax_m2",
        query_key_norms: Some(QueryKeyNorms::Whole),
        biases: Biases::blocks(false),
        experts: Some(experts),
        ..base
    })
}

fn mellum(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("head_dim", json!(128)),
        ("num_key_value_heads", json!(4)),
        ("max_position_embeddings", json!(131_072)),
    ]);
    let of = |kind, theta| llama::rotary_of(raw, kind, partial(theta, 1.0));
    let (full, sliding) = (of("full_attention", 500_000.0)?, of("sliding_attention", 10_000.0)?);
    let flat = raw.without("rope_parameters");
    let base = llama::base(&flat, RotaryDefaults::default())?;
    let experts = ExpertsConfig {
        count: moe::count(raw, 64)?,
        chosen: raw.size_or("num_experts_per_tok", 8)?,
        normalized: raw.flag_or("norm_topk_prob", true)?,
        intermediate_size: raw.size_or("moe_intermediate_size", 896)?,
        dense_blocks: moe::dense_blocks(raw, base.layers, 0)?,
        ..ExpertsConfig::default()
    };
    let alternate = AlternateAttention {
        blocks: raw.sliding_blocks(base.layers, BlockSet::Marked(Vec::new()))?,
        positions: Positions::Rotary(sliding),
        sliding_window: Some(raw.size_or("sliding_window", 1024)?),
    };
    Ok(DecoderConfig {
        family: "mellum",
        query_key_norms: per_head(true),
        positions: Positions::Rotary(full),
        alternate: Some(alternate),
        experts: Some(experts),
        ..base
    })
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    let family = config.family;
    let layer = move |index| {
        let block = llama::module(index);
        let mut plain = layer(index, &config);
        if family == "sarvam_moe" {
            plain = sarvam_layer(index, &config);
        }
        if config.branch_norms {
            plain.branch_norms = Some(["post_attn_norm", "post_ffn_norm"].map(|norm| block.name(norm)));
        }
        match &config.experts {
            Some(experts) if experts.in_block(index) => {
                LayerNames { mlp: expert_names(family).of(index, experts), ..plain }
            }
            _ => plain,
        }
    };
    let names = llama::tensors(layer);
    if family == "sarvam_moe" { TensorNames { token_embedding: "word_embeddings", ..names } } else { names }
}

fn expert_names(family: &str) -> moe::Names {
    let usual = moe::Names::default();
    match family {
        "exaone_moe" => moe::Names { correction: "mlp.e_score_correction_bias", ..usual },
        "kolibri1" => moe::Names { correction: "moe.router.expert_bias", ..usual },
        "hy_v3" => {
            moe::Names { router: "router.gate", correction: "mlp.expert_bias", shared: "shared_mlp", ..usual }
        }
        "sarvam_moe" => moe::Names { correction: "mlp.gate.expert_bias", ..usual },
        "minimax_m2" => moe::Names {
            module: "block_sparse_moe",
            correction: "block_sparse_moe.e_score_correction_bias",
            projections: ["w1", "w3", "w2"],
            ..usual
        },
        _ => usual,
    }
}

/// Queries, keys and values are one tensor, one after the other.
fn sarvam_layer(index: usize, config: &DecoderConfig) -> LayerNames {
    let block = llama::module(index);
    let (queries, keys) = (config.heads * config.head_size, config.kv_heads * config.head_size);
    let of = queries + 2 * keys;
    let part = |rows: std::ops::Range<usize>| {
        Part::new(&block.name("attention.query_key_value")).rows(Rows::Gather { rows: rows.collect(), of })
    };
    let norms = || ["attention.query_layernorm", "attention.key_layernorm"].map(|norm| block.name(norm));
    LayerNames {
        qkv: vec![part(0..queries), part(queries..queries + keys), part(queries + keys..of)],
        attention_output: Some(block.part("attention.dense")),
        query_key_norms: config.query_key_norms.map(|_| norms()),
        ..layer(index, config)
    }
}
