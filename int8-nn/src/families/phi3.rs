//! Phi-3 and Phi-4 (Abdin et al., 2024): LLaMA with fused projections and LongRoPE.

use super::llama::{self, layer, name};
use super::{Family, LayerNames, MlpNames, TensorNames};
use crate::Error;
use crate::config::{BlockSet, DecoderConfig, RawConfig, RotaryDefaults};
use crate::weights::Part;

pub(crate) const FAMILY: Family = Family { model_types: &["phi3"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let config = DecoderConfig { family: "phi3", ..llama::base(raw, RotaryDefaults::default())? };
    llama::windowed(raw, config, BlockSet::From { first: 0 })?.validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| LayerNames {
        qkv: vec![Part::new(&name(index, "self_attn.qkv_proj"))],
        mlp: MlpNames::Dense {
            up: vec![Part::new(&name(index, "mlp.gate_up_proj"))],
            down: Part::new(&name(index, "mlp.down_proj")),
        },
        ..layer(index, &config)
    })
}
