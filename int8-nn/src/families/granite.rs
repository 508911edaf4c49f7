//! Granite 3 and 4 (IBM, 2024, 2025) and HyperCLOVA X (NAVER, 2025): LLaMA with multipliers of embeddings, scores, branches and
//! logits; mixtures of experts, sinks beside windows of attention, norms at the end of the branches.

use serde_json::{Value, json};

use super::llama::{self, layer};
use super::{ExpertNames, Family, LayerNames, MlpNames, Module, TensorNames};
use crate::Error;
use crate::config::{
    AlternateAttention, Biases, DecoderConfig, ExpertsConfig, Positions, RawConfig, Rotary, RotaryDefaults,
};
use crate::convert;

pub(crate) const FAMILY: Family = Family {
    model_types: &[
        "granite",
        "granitemoe",
        "granitemoeshared",
        "granite_swa",
        "granitemoe_swa",
        "hyperclovax",
    ],
    config,
    names,
};

pub(super) fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let kind = raw.text_or("model_type", "")?;
    let windowed = kind.ends_with("_swa");
    let (eps, tied): (f64, bool) = if windowed { (1e-5, kind == "granite_swa") } else { (1e-6, false) };
    let raw = &raw.with_defaults(&[("rms_norm_eps", json!(eps)), ("tie_word_embeddings", json!(tied))]);
    let base = llama::base(raw, RotaryDefaults::default())?;
    let attention = raw.flag_or("attention_bias", false)?;
    let mlp = !kind.starts_with("granitemoe") && raw.flag_or("mlp_bias", false)?;
    let hyperclova = kind == "hyperclovax";
    let multiplier = |key: &str| -> Result<Option<f64>, Error> {
        Ok(Some(raw.positive_or(key, 1.0)?).filter(|multiplier| *multiplier != 1.0))
    };
    let logits = multiplier("logits_scaling")?;
    let scores = match raw.get("attention_multiplier") {
        None if hyperclova => None,
        _ => Some(raw.positive_or("attention_multiplier", 1.0)?),
    };
    let config = DecoderConfig {
        family: "granite",
        biases: Biases::of(attention, mlp),
        embedding_scale: multiplier("embedding_multiplier")?.map(convert::f32_from),
        residual_multiplier: multiplier("residual_multiplier")?.map(convert::f32_from),
        logit_scale: logits
            .map(|logits| if hyperclova { logits } else { logits.recip() })
            .map(convert::f32_from),
        attention_divisor: scores.map(|scores| scores.powi(-2)),
        branch_norms: hyperclova && raw.flag_or("use_post_norm", true)?,
        experts: if kind.starts_with("granitemoe") {
            Some(experts(raw, base.intermediate_size)?)
        } else {
            None
        },
        attention_sinks: windowed,
        ..base
    };
    if windowed { windows(raw, config)? } else { config }.validate(raw)
}

fn experts(raw: &RawConfig, intermediate_size: usize) -> Result<ExpertsConfig, Error> {
    let shared = match raw.text_or("model_type", "")? {
        "granitemoe" => None,
        _ => Some(raw.index_or("shared_intermediate_size", 0)?).filter(|size| *size > 0),
    };
    Ok(ExpertsConfig {
        count: raw.size_or("num_local_experts", 8)?,
        chosen: raw.size_or("num_experts_per_tok", 2)?,
        // The softmax over the chosen logits.
        normalized: true,
        intermediate_size,
        shared_intermediate_size: shared,
        ..ExpertsConfig::default()
    })
}

/// Three of four blocks have a window; each block has a rotary base of its own, or no positions.
fn windows(raw: &RawConfig, config: DecoderConfig) -> Result<DecoderConfig, Error> {
    const BASES: &str = "layer_rope_theta";
    let default = (0..config.layers).map(|layer| !layer.is_multiple_of(4)).collect();
    let blocks = raw.sliding_blocks(config.layers, crate::config::BlockSet::Marked(default))?;
    let size = raw.size_or("sliding_window", 128)?;
    let mut positions = [config.positions.clone(), config.positions.clone()];
    if let Some(list) = raw.get(BASES) {
        let wrong = || raw.problem(BASES, format!("is no list of {} numbers, one a layer", config.layers));
        let list = list.as_array().filter(|list| list.len() == config.layers).ok_or_else(wrong)?;
        for (windowed, positions) in [false, true].into_iter().zip(&mut positions) {
            let mut of_kind = (0..config.layers).filter(|layer| blocks.contains(*layer) == windowed);
            let Some(first) = of_kind.next() else { continue };
            if of_kind.any(|layer| list[layer] != list[first]) {
                return Err(raw.problem(
                    BASES,
                    "differs between blocks with, or between blocks without a window, which is not implemented",
                ));
            }
            *positions = at_base(raw, BASES, &list[first], positions)?;
        }
    }
    let [positions, of_windows] = positions;
    let alternate = AlternateAttention { blocks, positions: of_windows, sliding_window: Some(size) };
    Ok(DecoderConfig { positions, alternate: Some(alternate), ..config })
}

/// These positions with the rotary base `theta`; without positions where it is null or 0.
fn at_base(raw: &RawConfig, key: &str, theta: &Value, positions: &Positions) -> Result<Positions, Error> {
    match positions {
        _ if theta.is_null() || theta.as_f64() == Some(0.0) => Ok(Positions::None),
        Positions::Rotary(rotary) => {
            Ok(Positions::Rotary(Rotary { theta: raw.positive(key, theta)?, ..rotary.clone() }))
        }
        other => Ok(other.clone()),
    }
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| {
        let block = llama::module(index);
        let plain = layer(index, &config);
        LayerNames {
            branch_norms: config
                .branch_norms
                .then(|| ["post_norm1", "post_norm2"].map(|norm| block.name(norm))),
            sinks: config.attention_sinks.then(|| block.name("self_attn.sinks")),
            mlp: match &config.experts {
                None => plain.mlp,
                Some(experts) => MlpNames::Experts(expert_names(index, experts.count)),
            },
            ..plain
        }
    })
}

/// As released, and as transformers holds them.
pub(super) fn expert_names(index: usize, count: usize) -> Vec<ExpertNames> {
    [
        ("router.layer", ["input_linear.weight", "output_linear.weight"]),
        ("router", ["experts.gate_up_proj", "experts.down_proj"]),
    ]
    .into_iter()
    .map(|(router, fused)| {
        let block = llama::module(index);
        let experts = Module::new(block.name("block_sparse_moe"));
        ExpertNames {
            router: vec![experts.name(router)],
            correction: None,
            fused: Some(fused.map(|name| experts.name(name))),
            expert: Box::new(move |expert| {
                if expert == count {
                    return (
                        block.parts(["shared_mlp.input_linear"]),
                        block.part("shared_mlp.output_linear"),
                    );
                }
                let expert = Module::new(experts.name(&format!("experts.{expert}")));
                (expert.parts(["gate_proj", "up_proj"]), expert.part("down_proj"))
            }),
        }
    })
    .collect()
}
