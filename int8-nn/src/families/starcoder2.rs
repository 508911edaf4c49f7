//! StarCoder2 (Lozhkov et al., 2024): LLaMA's attention with a sliding window, LayerNorm, an MLP without gate, biases.

use super::llama::{self, layer};
use super::{Family, LayerNames, TensorNames};
use crate::Error;
use crate::config::{BlockSet, DecoderConfig, NormKind, RawConfig, RotaryDefaults};

pub(crate) const FAMILY: Family = Family { model_types: &["starcoder2"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let config = DecoderConfig {
        family: "starcoder2",
        norm: NormKind::LayerNorm,
        norm_eps: raw.float_or("norm_epsilon", 1e-5)?,
        activation: raw.activation("hidden_act", "gelu_pytorch_tanh")?,
        gated_mlp: false,
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        ..llama::base(raw, RotaryDefaults::default())?
    };
    llama::windowed(raw, config, BlockSet::From { first: 0 })?.validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| LayerNames {
        mlp: llama::module(index).mlp(["mlp.c_fc"], "mlp.c_proj"),
        ..layer(index, &config)
    })
}
