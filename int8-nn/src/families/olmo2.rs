//! OLMo 2 and 3, OLMoE and FlexOlmo (OLMo Team, 2024, 2025; Muennighoff et al., 2024; Shi et al., 2025): norms over all queries
//! and over all keys; all but OLMoE normalise outputs of branches instead of inputs. OLMo 3 has windows in three of four blocks;
//! OLMoE and FlexOlmo have a mixture of experts. The first OLMo (Groeneveld et al., 2024) is LLaMA with LayerNorms without gains.

use super::llama::{self, layer};
use super::{Family, LayerNames, TensorNames, qwen_moe};
use crate::Error;
use crate::config::{
    AlternateAttention, BlockSet, DecoderConfig, ExpertsConfig, NormKind, Positions, QueryKeyNorms,
    RawConfig, RotaryDefaults,
};

pub(crate) const FAMILY: Family =
    Family { model_types: &["olmo2", "olmoe", "flex_olmo", "olmo3", "olmo"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    match raw.text_or("model_type", "")? {
        "olmo" => first(raw),
        "olmo3" => third(raw),
        "olmoe" | "flex_olmo" => mixture(raw),
        _ => {
            let base = base(raw, RotaryDefaults::default())?;
            Ok(DecoderConfig { family: "olmo2", branch_norms: true, ..base })
        }
    }?
    .validate(raw)
}

fn base(raw: &RawConfig, rotary: RotaryDefaults) -> Result<DecoderConfig, Error> {
    Ok(DecoderConfig {
        norm_eps: raw.float_or("rms_norm_eps", 1e-5)?,
        query_key_norms: Some(QueryKeyNorms::Whole),
        ..llama::base(raw, rotary)?
    })
}

fn clip(raw: &RawConfig) -> Result<Option<f32>, Error> {
    match raw.get("clip_qkv") {
        Some(_) => Ok(Some(raw.float_or("clip_qkv", 0.0)?)),
        None => Ok(None),
    }
}

fn first(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    Ok(DecoderConfig {
        family: "olmo",
        norm: NormKind::LayerNorm,
        norm_gains: false,
        norm_eps: 1e-5,
        qkv_limit: clip(raw)?,
        ..llama::base(raw, RotaryDefaults::default())?
    })
}

fn mixture(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let flexible = raw.text_or("model_type", "")? == "flex_olmo";
    let theta = if flexible { 500_000.0 } else { 10_000.0 };
    let eps = if flexible { 1e-6 } else { 1e-5 };
    let raw = &raw.with_defaults(&[("rms_norm_eps", eps.into())]);
    let base = base(raw, RotaryDefaults { theta, ..RotaryDefaults::default() })?;
    let experts = ExpertsConfig {
        count: raw.size("num_experts")?,
        chosen: raw.size("num_experts_per_tok")?,
        normalized: raw.flag_or("norm_topk_prob", false)?,
        intermediate_size: base.intermediate_size,
        ..ExpertsConfig::default()
    };
    // After the norms.
    let qkv_limit = if flexible { None } else { clip(raw)? };
    Ok(DecoderConfig {
        family: if flexible { "flex_olmo" } else { "olmoe" },
        branch_norms: flexible,
        experts: Some(experts),
        qkv_limit,
        ..base
    })
}

/// Scaling is for the blocks without a window.
fn third(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    const ROTARY: RotaryDefaults = RotaryDefaults { theta: 500_000.0, share: 1.0, partial: false };
    let (full, sliding, rest) = if raw.get("rope_parameters").is_some() {
        let of = |kind| llama::rotary_of(raw, kind, ROTARY);
        (Some(of("full_attention")?), of("sliding_attention")?, raw.without("rope_parameters"))
    } else {
        let plain = raw.without("rope_scaling").without("rope_theta");
        (None, llama::rotary_of(&plain, "sliding_attention", ROTARY)?, raw.clone())
    };
    let base = base(&rest, ROTARY)?;
    let positions = full.map_or(base.positions.clone(), Positions::Rotary);
    let config = DecoderConfig { family: "olmo3", branch_norms: true, positions, ..base };
    let alternate = AlternateAttention {
        blocks: raw.sliding_blocks(config.layers, BlockSet::AllButEach { period: 4 })?,
        positions: Positions::Rotary(sliding),
        sliding_window: match raw.is_null("sliding_window") {
            true => None,
            false => Some(raw.size_or("sliding_window", 4096)?),
        },
    };
    Ok(DecoderConfig { alternate: Some(alternate), ..config })
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| {
        let block = llama::module(index);
        let plain = layer(index, &config);
        let mlp = match &config.experts {
            Some(experts) => qwen_moe::mlp(index, experts),
            None => plain.mlp,
        };
        let plain = LayerNames { mlp, ..plain };
        if !config.branch_norms {
            return plain;
        }
        let branch_norms = ["post_attention_layernorm", "post_feedforward_layernorm"];
        LayerNames {
            attention_norm: None,
            mlp_norm: None,
            branch_norms: Some(branch_norms.map(|norm| block.name(norm))),
            ..plain
        }
    })
}
