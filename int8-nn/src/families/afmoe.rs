//! LLaMA with DeepSeek-V3's experts and a gate behind attention: AFM-MoE (Arcee, 2025), whose gate is `σ` and whose branches are
//! normalised, and Laguna (Poolside, 2026), whose gate is a softplus.

use serde_json::{Value, json};

use super::llama::{self, layer};
use super::{Family, LayerNames, TensorNames, exaone, moe};
use crate::Error;
use crate::config::{
    AlternateAttention, AttentionGate, BlockSet, DecoderConfig, ExpertsConfig, GateFunction, HeadShape,
    Positions, QueryKeyNorms, RawConfig, RotaryDefaults, Scores,
};
use crate::convert;

pub(crate) const FAMILY: Family = Family { model_types: &["afmoe", "laguna"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    match raw.text_or("model_type", "")? {
        "laguna" => laguna(raw),
        _ => afmoe(raw),
    }?
    .validate(raw)
}

fn afmoe(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let period = raw.size_or("global_attn_every_n_layers", 4)?;
    let raw = &raw.with_defaults(&[
        ("head_dim", json!(128)),
        ("rms_norm_eps", json!(1e-5)),
        ("sliding_window", json!(1024)),
        ("sliding_window_pattern", json!(period)),
        ("max_position_embeddings", json!(16384)),
    ]);
    let base = llama::base(raw, RotaryDefaults::default())?;
    let intermediate_size = raw.size_or("moe_intermediate_size", 1408)?;
    let experts = ExpertsConfig {
        count: moe::count(raw, 64)?,
        chosen: raw.size_or("num_experts_per_tok", 6)?,
        normalized: true,
        scores: Scores::Sigmoid,
        correction: true,
        scale: raw.float_or("route_scale", 1.0)?,
        intermediate_size,
        shared_intermediate_size: moe::shared(raw, "num_shared_experts", 2, intermediate_size)?,
        dense_blocks: (0..raw.index_or("num_dense_layers", 1)?.min(base.layers)).collect(),
        ..ExpertsConfig::default()
    };
    let scaled = raw.flag_or("mup_enabled", false)?;
    let scale = convert::f32_from(convert::f64_from(base.hidden_size).sqrt());
    let config = DecoderConfig {
        family: "afmoe",
        query_key_norms: Some(QueryKeyNorms::PerHead),
        branch_norms: true,
        attention_gate: Some(AttentionGate { function: GateFunction::Sigmoid, by_head: false }),
        embedding_scale: scaled.then_some(scale),
        experts: Some(experts),
        ..base
    };
    exaone::rotated_in_windows(raw, config)
}

fn laguna(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    const HEADS: &str = "num_attention_heads_per_layer";
    const GATE: &str = "gating";
    let raw = &raw.with_defaults(&[
        ("head_dim", json!(128)),
        ("num_key_value_heads", json!(8)),
        ("sliding_window", json!(512)),
        ("max_position_embeddings", json!(131_072)),
    ]);
    let of = |kind, theta, share| llama::rotary_of(raw, kind, RotaryDefaults { theta, share, partial: true });
    let default = raw.get("rope_parameters").is_none();
    let share = if default { 0.5 } else { 1.0 };
    let (full, sliding) = (of("full_attention", 500_000.0, share)?, of("sliding_attention", 10_000.0, 1.0)?);
    let base = llama::base(&raw.without("rope_parameters"), RotaryDefaults::default())?;
    let shapes = match raw.get(HEADS) {
        None => None,
        Some(list) => head_counts(raw, HEADS, list, &base)?,
    };
    for key in ["moe_router_logit_softcapping", "moe_apply_router_weight_on_input"] {
        if raw.get(key).is_some_and(|value| *value != json!(false) && value.as_f64() != Some(0.0)) {
            return Err(raw.problem(key, "is set, which is not implemented"));
        }
    }
    let by_head = match raw.get(GATE) {
        None | Some(Value::Bool(true)) => true,
        Some(Value::String(kind)) if kind == "per-head" => true,
        _ => false,
    };
    let experts = ExpertsConfig {
        count: moe::count(raw, 256)?,
        chosen: raw.size_or("num_experts_per_tok", 8)?,
        normalized: true,
        scores: Scores::Sigmoid,
        correction: true,
        scale: raw.float_or("moe_routed_scaling_factor", 1.0)?,
        intermediate_size: raw.size_or("moe_intermediate_size", 512)?,
        shared_intermediate_size: Some(raw.size_or("shared_expert_intermediate_size", 512)?),
        dense_blocks: moe::dense_blocks(raw, base.layers, 1)?,
        ..ExpertsConfig::default()
    };
    let alternate = AlternateAttention {
        blocks: raw.sliding_blocks(base.layers, BlockSet::Marked(Vec::new()))?,
        positions: Positions::Rotary(sliding),
        sliding_window: Some(raw.size("sliding_window")?),
    };
    Ok(DecoderConfig {
        family: "laguna",
        query_key_norms: Some(QueryKeyNorms::PerHead),
        attention_gate: Some(AttentionGate { function: GateFunction::Softplus, by_head }),
        positions: Positions::Rotary(full),
        shapes,
        alternate: Some(alternate),
        experts: Some(experts),
        ..base
    })
}

/// Numbers of query heads, one a layer, of which one may differ from that of the others.
fn head_counts(
    raw: &RawConfig,
    key: &str,
    list: &Value,
    base: &DecoderConfig,
) -> Result<Option<(BlockSet, HeadShape)>, Error> {
    let count = |value: &Value| value.as_u64().and_then(|count| usize::try_from(count).ok());
    let counts: Option<Vec<usize>> = list.as_array().and_then(|list| list.iter().map(count).collect());
    let counts = counts
        .filter(|counts| counts.len() == base.layers && counts.iter().all(|count| *count > 0))
        .ok_or_else(|| {
            raw.problem(key, format!("is no list of {} numbers of heads, one a layer", base.layers))
        })?;
    let Some(other) = counts.iter().copied().find(|count| *count != base.heads) else { return Ok(None) };
    if counts.iter().any(|count| *count != base.heads && *count != other) {
        return Err(
            raw.problem(key, "has several numbers besides `num_attention_heads`, which is not implemented")
        );
    }
    let blocks = BlockSet::Marked(counts.iter().map(|count| *count == other).collect());
    Ok(Some((blocks, HeadShape { heads: other, kv_heads: base.kv_heads, head_size: base.head_size })))
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| {
        let block = llama::module(index);
        let plain = layer(index, &config);
        let first = config.family == "afmoe";
        let names = if first {
            moe::Names { router: "router.gate", correction: "mlp.expert_bias", ..moe::Names::default() }
        } else {
            let correction = "mlp.experts.e_score_correction_bias";
            moe::Names { correction, shared: "shared_expert", ..moe::Names::default() }
        };
        let mlp = match &config.experts {
            Some(experts) if experts.in_block(index) => names.of(index, experts),
            _ => plain.mlp,
        };
        let gate = if first { "self_attn.gate_proj" } else { "self_attn.g_proj" };
        let plain = LayerNames { mlp, gate: Some(block.part(gate).biased(false)), ..plain };
        if !first {
            return plain;
        }
        let branch_norms = ["post_attention_layernorm", "post_mlp_layernorm"];
        LayerNames {
            mlp_norm: Some(block.name("pre_mlp_layernorm")),
            branch_norms: Some(branch_norms.map(|norm| block.name(norm))),
            ..plain
        }
    })
}
