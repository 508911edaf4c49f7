//! Decoders in the manner of BART: BioGPT (Luo et al., 2022), with learned positions beside a scaled token embedding.

use crate::Error;
use crate::config::{DecoderConfig, Positions, RawConfig, SizeKeys};
use crate::convert;

use super::{Family, LayerNames, Module, TensorNames};

pub(crate) const FAMILY: Family = Family { model_types: &["biogpt"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let base = DecoderConfig::sized(raw, SizeKeys::default())?;
    let scale = convert::f32_from(convert::f64_from(base.hidden_size).sqrt());
    DecoderConfig {
        family: "biogpt",
        intermediate_size: raw.size("intermediate_size")?,
        max_positions: raw.size_or("max_position_embeddings", 1024)?,
        // Whatever `layer_norm_eps` says.
        norm_eps: 1e-5,
        positions: Positions::Learned { offset: 2 },
        activation: raw.activation("hidden_act", "gelu")?,
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        embedding_scale: raw.flag_or("scale_embedding", true)?.then_some(scale),
        scales_tokens_alone: true,
        ..base
    }
    .validate(raw)
}

fn names(_: &DecoderConfig) -> TensorNames {
    let layer = |layer| {
        let block = Module::new(format!("layers.{layer}"));
        LayerNames::new(
            block.parts(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            block.part("self_attn.out_proj"),
            block.mlp(["fc1"], "fc2"),
        )
        .norms(block.name("self_attn_layer_norm"), block.name("final_layer_norm"))
    };
    TensorNames {
        position_embedding: Some("embed_positions"),
        head: "output_projection",
        ..TensorNames::new(&["biogpt.", ""], "embed_tokens", "layer_norm", layer)
    }
}
