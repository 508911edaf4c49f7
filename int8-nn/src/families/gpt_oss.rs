//! gpt-oss (OpenAI, 2025): attention sinks, windows in every second block, biases everywhere, and experts whose gates have
//! limits, in MXFP4 or in 16 bits.

use serde_json::json;

use super::llama::{self, layer};
use super::{ExpertNames, Family, LayerNames, MlpNames, Module, TensorNames};
use crate::Error;
use crate::config::{Biases, BlockSet, ClampedGate, DecoderConfig, ExpertsConfig, RawConfig, RotaryDefaults};
use crate::weights::{Part, Rows};

pub(crate) const FAMILY: Family = Family { model_types: &["gpt_oss"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("head_dim", json!(64)),
        ("num_key_value_heads", json!(8)),
        ("rms_norm_eps", json!(1e-5)),
        ("max_position_embeddings", json!(131_072)),
        ("sliding_window", json!(128)),
        ("swiglu_alpha", json!(1.702)),
        ("swiglu_limit", json!(7.0)),
    ]);
    if raw.get("rope_parameters").is_none() && raw.get("rope_scaling").is_none() {
        return Err(raw.problem("rope_parameters", "is missing; this family's positions are scaled by it"));
    }
    let base = llama::base(raw, RotaryDefaults { theta: 150_000.0, ..RotaryDefaults::default() })?;
    let count = if raw.get("num_local_experts").is_some() { "num_local_experts" } else { "num_experts" };
    let experts = ExpertsConfig {
        count: raw.size_or(count, 128)?,
        chosen: raw.size_or("num_experts_per_tok", 4)?,
        // The softmax over the chosen logits.
        normalized: true,
        intermediate_size: base.intermediate_size,
        ..ExpertsConfig::default()
    };
    let attention = raw.flag_or("attention_bias", true)?;
    let config = DecoderConfig {
        family: "gpt_oss",
        biases: Biases { router: true, ..Biases::of(attention, true) },
        experts: Some(experts),
        attention_sinks: true,
        clamped_gate: Some(ClampedGate {
            alpha: raw.float_or("swiglu_alpha", 1.702)?,
            limit: raw.float_or("swiglu_limit", 7.0)?,
        }),
        ..base
    };
    let every_second = (0..config.layers).map(|layer| layer.is_multiple_of(2)).collect();
    llama::windowed(raw, config, BlockSet::Marked(every_second))?.validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| {
        let block = llama::module(index);
        LayerNames {
            sinks: Some(block.name("self_attn.sinks")),
            mlp: experts(index, config.intermediate_size),
            ..layer(index, &config)
        }
    })
}

/// Weights are `[experts, in, out]`; gate and expansion alternate.
fn experts(index: usize, intermediate_size: usize) -> MlpNames {
    let mlp = Module::new(llama::module(index).name("mlp"));
    MlpNames::Experts(vec![ExpertNames {
        router: vec![mlp.name("router")],
        correction: None,
        fused: None,
        expert: Box::new(move |expert| {
            let part = |name: &str| {
                let name = mlp.name(name);
                Part::new(&name).slab(expert).conv1d().bias_in(format!("{name}_bias"))
            };
            let every_second = |first: usize| {
                let rows = (0..intermediate_size).map(|row| 2 * row + first).collect();
                part("experts.gate_up_proj").rows(Rows::Gather { rows, of: 2 * intermediate_size })
            };
            (vec![every_second(0), every_second(1)], part("experts.down_proj"))
        }),
    }])
}
