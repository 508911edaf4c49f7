//! GPT-NeoX and Pythia (Black et al., 2022; Biderman et al., 2023): partial rotary positions, attention and MLP in
//! parallel (or in sequence), query-key-value fused head by head.

use super::{Family, LayerNames, Module, TensorNames, interleaved_qkv};
use crate::Error;
use crate::config::{
    Biases, BlockKind, DecoderConfig, Positions, RawConfig, Rotary, RotaryDefaults, SizeKeys,
};

pub(crate) const FAMILY: Family = Family { model_types: &["gpt_neox"], config, names };

const ROTARY: RotaryDefaults = RotaryDefaults { theta: 10_000.0, share: 0.25, partial: true };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let base = DecoderConfig::sized(raw, SizeKeys::default())?;
    let parallel = raw.flag_or("use_parallel_residual", true)?;
    let rotary = Rotary::read(raw, base.head_size, ROTARY)?;
    let attention_bias = raw.flag_or("attention_bias", true)?;
    DecoderConfig {
        family: "gpt_neox",
        intermediate_size: raw.size("intermediate_size")?,
        max_positions: rotary.max_positions(raw.size_or("max_position_embeddings", 2048)?),
        norm_eps: raw.float_or("layer_norm_eps", 1e-5)?,
        block: if parallel { BlockKind::Parallel } else { BlockKind::PreNorm },
        positions: Positions::Rotary(rotary),
        biases: Biases::of(attention_bias, true),
        activation: raw.activation("hidden_act", "gelu")?,
        ..base
    }
    .validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    let layer = move |layer| block(&Module::new(format!("layers.{layer}")), "attention", &config);
    TensorNames {
        head: "embed_out",
        ..TensorNames::new(&["gpt_neox.", ""], "embed_in", "final_layer_norm", layer)
    }
}

/// A block's names with its module `attention`, which others share.
pub(super) fn block(block: &Module, attention: &str, config: &DecoderConfig) -> LayerNames {
    LayerNames::new(
        interleaved_qkv(&block.name(&format!("{attention}.query_key_value")), config),
        block.part(&format!("{attention}.dense")),
        block.mlp(["mlp.dense_h_to_4h"], "mlp.dense_4h_to_h"),
    )
    .norms(block.name("input_layernorm"), block.name("post_attention_layernorm"))
}
