//! Mixtral (Jiang et al., 2024): Mistral with a mixture of experts.

use super::llama::{self, layer, name};
use super::{ExpertNames, Family, LayerNames, MlpNames, TensorNames};
use crate::Error;
use crate::config::{BlockSet, DecoderConfig, ExpertsConfig, RawConfig, RotaryDefaults};
use crate::weights::Part;

pub(crate) const FAMILY: Family = Family { model_types: &["mixtral"], config, names };

const ROTARY: RotaryDefaults = RotaryDefaults { theta: 1_000_000.0, share: 1.0 };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let base = llama::base(raw, ROTARY)?;
    let experts = ExpertsConfig {
        count: raw.size("num_local_experts")?,
        chosen: raw.size_or("num_experts_per_tok", 2)?,
        normalized: true,
        intermediate_size: base.intermediate_size,
        shared_intermediate_size: None,
        period: 1,
        dense_blocks: Vec::new(),
    };
    let norm_eps = crate::convert::f32_from(raw.positive_or("rms_norm_eps", 1e-5)?);
    let config = DecoderConfig { family: "mixtral", norm_eps, experts: Some(experts), ..base };
    llama::windowed(raw, config, BlockSet::From { first: 0 })?.validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| {
        // transformers 5 calls the module `mlp`, and saves it under its first name.
        let experts = ["block_sparse_moe", "mlp"].map(|module| {
            let module = name(index, module);
            let folder = module.clone();
            ExpertNames {
                router: vec![format!("{module}.gate")],
                expert: Box::new(move |expert| {
                    let part = |part: &str| Part::new(&format!("{folder}.experts.{expert}.{part}"));
                    (vec![part("w1"), part("w3")], part("w2"))
                }),
                fused: ["gate_up_proj", "down_proj"].map(|part| format!("{module}.experts.{part}")),
            }
        });
        LayerNames { mlp: MlpNames::Experts(experts.into()), ..layer(index, &config) }
    })
}
