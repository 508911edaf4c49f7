//! Mixtral (Jiang et al., 2024): Mistral with a mixture of experts.

use super::llama::{self, layer};
use super::{ExpertNames, Family, LayerNames, MlpNames, Module, TensorNames};
use crate::Error;
use crate::config::{Biases, BlockSet, DecoderConfig, ExpertsConfig, RawConfig, RotaryDefaults};

pub(crate) const FAMILY: Family = Family { model_types: &["mixtral"], config, names };

const ROTARY: RotaryDefaults = RotaryDefaults { theta: 1_000_000.0, share: 1.0, partial: false };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("vocab_size", 32000.into()),
        ("hidden_size", 4096.into()),
        ("intermediate_size", 14336.into()),
        ("num_hidden_layers", 32.into()),
        ("num_attention_heads", 32.into()),
        ("num_key_value_heads", 8.into()),
        ("max_position_embeddings", 131_072.into()),
        ("num_local_experts", 8.into()),
    ]);
    let base = llama::base(raw, ROTARY)?;
    let experts = ExpertsConfig {
        count: raw.size("num_local_experts")?,
        chosen: raw.size_or("num_experts_per_tok", 2)?,
        normalized: true,
        intermediate_size: base.intermediate_size,
        ..ExpertsConfig::default()
    };
    let norm_eps = raw.float_or("rms_norm_eps", 1e-5)?;
    let config = DecoderConfig {
        family: "mixtral",
        norm_eps,
        experts: Some(experts),
        biases: Biases::blocks(false),
        ..base
    };
    llama::windowed(raw, config, BlockSet::From { first: 0 })?.validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| LayerNames { mlp: mlp(index), ..layer(index, &config) })
}

/// The experts of block `index`.
pub(super) fn mlp(index: usize) -> MlpNames {
    // transformers 5 calls the module `mlp`, and saves it under the former name.
    let experts = ["block_sparse_moe", "mlp"].map(|module| {
        let module = Module::new(llama::module(index).name(module));
        ExpertNames {
            router: vec![module.name("gate")],
            correction: None,
            fused: Some(["experts.gate_up_proj", "experts.down_proj"].map(|name| module.name(name))),
            expert: Box::new(move |expert| {
                let expert = Module::new(module.name(&format!("experts.{expert}")));
                (expert.parts(["w1", "w3"]), expert.part("w2"))
            }),
        }
    });
    MlpNames::Experts(experts.into())
}
