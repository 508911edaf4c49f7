//! Phi-3 and Phi-4 (Abdin et al., 2024), of the multimodal one its text part: LLaMA with fused projections and LongRoPE.

use super::llama::{self, layer};
use super::{Family, LayerNames, TensorNames};
use crate::Error;
use crate::config::{Biases, BlockSet, DecoderConfig, RawConfig, Rotary, RotaryDefaults};

pub(crate) const FAMILY: Family = Family { model_types: &["phi3", "phi4_multimodal"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw
        .with_defaults(&[("original_max_position_embeddings", 4096.into()), ("rms_norm_eps", 1e-5.into())]);
    let base = llama::base(raw, RotaryDefaults { partial: true, ..RotaryDefaults::default() })?;
    let recomputed_beyond = base.rotary().find_map(Rotary::fixed_positions);
    let config = DecoderConfig { family: "phi3", biases: Biases::blocks(false), recomputed_beyond, ..base };
    llama::windowed(raw, config, BlockSet::From { first: 0 })?.validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| {
        let block = llama::module(index);
        LayerNames {
            qkv: block.parts(["self_attn.qkv_proj"]),
            mlp: block.mlp(["mlp.gate_up_proj"], "mlp.down_proj"),
            ..layer(index, &config)
        }
    })
}
