//! StarCoder2 (Lozhkov et al., 2024): LLaMA's attention with a sliding window, LayerNorm, an MLP without gate, biases.

use super::llama::{self, layer};
use super::{Family, LayerNames, TensorNames};
use crate::Error;
use crate::config::{Biases, BlockSet, DecoderConfig, NormKind, RawConfig, RotaryDefaults};

pub(crate) const FAMILY: Family = Family { model_types: &["starcoder2"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("vocab_size", 49152.into()),
        ("hidden_size", 3072.into()),
        ("intermediate_size", 12288.into()),
        ("num_hidden_layers", 30.into()),
        ("num_attention_heads", 24.into()),
        ("num_key_value_heads", 2.into()),
        ("max_position_embeddings", 4096.into()),
    ]);
    let config = DecoderConfig {
        family: "starcoder2",
        norm: NormKind::LayerNorm,
        norm_eps: raw.float_or("norm_epsilon", 1e-5)?,
        activation: raw.activation("hidden_act", "gelu_pytorch_tanh")?,
        gated_mlp: false,
        biases: Biases::blocks(raw.flag_or("use_bias", true)?),
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
