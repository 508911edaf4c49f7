//! GPT-NeoX Japanese (ABEJA, 2022): GPT-NeoX one branch after the other, without biases but that of the last block's attention.

use super::{Family, LayerNames, Module, TensorNames, gpt_neox};
use crate::Error;
use crate::config::{Biases, DecoderConfig, Positions, RawConfig, Rotary, RotaryDefaults, SizeKeys};
use crate::convert;

pub(crate) const FAMILY: Family = Family { model_types: &["gpt_neox_japanese"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    const MULTIPLE: &str = "intermediate_multiple_size";
    let base = DecoderConfig::sized(raw, SizeKeys::default())?;
    let rotary =
        Rotary::read(raw, base.head_size, RotaryDefaults { partial: true, ..RotaryDefaults::default() })?;
    let multiple = raw.positive_or(MULTIPLE, 4.0)?;
    let width = multiple * convert::f64_from(base.hidden_size);
    let Some(intermediate_size) = convert::whole(width) else {
        return Err(raw.problem(MULTIPLE, format!("is {multiple}; it gives a width of {width}")));
    };
    DecoderConfig {
        family: "gpt_neox_japanese",
        intermediate_size,
        max_positions: rotary.max_positions(raw.size_or("max_position_embeddings", 2048)?),
        norm_eps: raw.float_or("layer_norm_eps", 1e-5)?,
        positions: Positions::Rotary(rotary),
        biases: Biases { attention_output: true, ..Biases::blocks(false) },
        activation: raw.activation("hidden_act", "gelu")?,
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        ..base
    }
    .validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    let layer = move |layer| {
        let block = Module::new(format!("layers.{layer}"));
        let last = layer + 1 == config.layers;
        let dense = block.part("attention.dense").bias_in(block.name("attention.dense_bias")).biased(last);
        LayerNames { attention_output: Some(dense), ..gpt_neox::block(&block, "attention", &config) }
    };
    TensorNames {
        head: "embed_out",
        ..TensorNames::new(&["gpt_neox_japanese.", ""], "embed_in", "final_layer_norm", layer)
    }
}
