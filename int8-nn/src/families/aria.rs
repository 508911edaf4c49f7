//! Aria (Rhymes, 2024), its text part: LLaMA with a mixture of experts beside shared ones.

use super::llama::{self, layer};
use super::{ExpertNames, Family, LayerNames, MlpNames, Module, TensorNames, moe};
use crate::Error;
use crate::config::{Activation, DecoderConfig, ExpertsConfig, RawConfig, RotaryDefaults};
use crate::weights::Part;

pub(crate) const FAMILY: Family = Family { model_types: &["aria_text"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let base = llama::base(raw, RotaryDefaults::default())?;
    if base.activation != Activation::Silu {
        return Err(raw.problem("hidden_act", "is not silu, which the experts have whatever it says"));
    }
    if raw.flag_or("mlp_bias", false)? {
        return Err(raw.problem("mlp_bias", "is true; shared experts with biases are not implemented"));
    }
    let experts = ExpertsConfig {
        count: raw.size_or("moe_num_experts", 8)?,
        chosen: raw.size_or("moe_topk", 2)?,
        // The softmax over the chosen logits.
        normalized: true,
        intermediate_size: base.intermediate_size,
        shared_intermediate_size: moe::shared(raw, "moe_num_shared_experts", 2, base.intermediate_size)?,
        ..ExpertsConfig::default()
    };
    DecoderConfig { family: "aria", experts: Some(experts), ..base }.validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| {
        let count = config.experts.as_ref().map_or(0, |experts| experts.count);
        LayerNames { mlp: experts(index, count), ..layer(index, &config) }
    })
}

/// Weights are `[experts, in, out]`.
fn experts(index: usize, count: usize) -> MlpNames {
    let mlp = Module::new(llama::module(index).name("mlp"));
    MlpNames::Experts(vec![ExpertNames {
        router: vec![mlp.name("router")],
        correction: None,
        fused: None,
        expert: Box::new(move |expert| {
            if expert == count {
                let shared = Module::new(mlp.name("shared_experts"));
                return (shared.parts(["gate_proj", "up_proj"]), shared.part("down_proj"));
            }
            let part = |name: &str| Part::new(&mlp.name(name)).slab(expert).conv1d();
            (vec![part("experts.fc1.weight")], part("experts.fc2.weight"))
        }),
    }])
}
