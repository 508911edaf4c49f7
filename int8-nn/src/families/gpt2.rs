//! GPT-2 (Radford et al., 2019): learned positions, LayerNorm, tanh-GELU, fused query-key-value, and weights stored
//! `[in, out]` (Conv1D). bitsandbytes saves the int8 weight of a Conv1D as `[out, in]`.

use super::{Family, LayerNames, MlpNames, Module, TensorNames};
use crate::Error;
use crate::config::{DecoderConfig, Positions, RawConfig, SizeKeys};

pub(crate) const FAMILY: Family = Family { model_types: &["gpt2", "gpt-sw3"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    DecoderConfig {
        attention_divisor: if raw.flag_or("scale_attn_weights", true)? { None } else { Some(1.0) },
        scores_by_layer: raw.flag_or("scale_attn_by_inverse_layer_idx", false)?,
        ..base(raw)?
    }
    .validate(raw)
}

/// The keys that GPT-BigCode and GPT-J share.
pub(super) fn base(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let sized = DecoderConfig::sized(raw, SizeKeys { hidden: "n_embd", layers: "n_layer", heads: "n_head" })?;
    Ok(DecoderConfig {
        family: "gpt2",
        intermediate_size: raw.size_or("n_inner", sized.intermediate_size)?,
        max_positions: raw.size_or("n_positions", 1024)?,
        norm_eps: raw.float_or("layer_norm_epsilon", 1e-5)?,
        positions: Positions::Learned { offset: 0 },
        activation: raw.activation("activation_function", "gelu_new")?,
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        ..sized
    })
}

fn names(_: &DecoderConfig) -> TensorNames {
    tensors(block)
}

/// A block's names, which the first GPT shares.
pub(super) fn block(block: &Module) -> LayerNames {
    let conv1d = |name: &str| block.part(name).conv1d();
    LayerNames::new(
        vec![conv1d("attn.c_attn")],
        conv1d("attn.c_proj"),
        MlpNames::Dense { up: vec![conv1d("mlp.c_fc")], down: conv1d("mlp.c_proj") },
    )
    .norms(block.name("ln_1"), block.name("ln_2"))
}

/// GPT-2's names around blocks named by `layer`, which gets the module `h.{index}`.
pub(super) fn tensors(layer: impl Fn(&Module) -> LayerNames + 'static) -> TensorNames {
    TensorNames {
        position_embedding: Some("wpe"),
        ..TensorNames::new(&["transformer.", ""], "wte", "ln_f", move |index| {
            layer(&Module::new(format!("h.{index}")))
        })
    }
}
