//! OPT (Zhang et al., 2022): learned positions with an offset of 2, LayerNorm, ReLU, biases everywhere. The 350m model
//! normalises after the residual addition and projects its embedding.

use super::{Family, LayerNames, Module, TensorNames};
use crate::Error;
use crate::config::{Biases, BlockKind, DecoderConfig, Positions, RawConfig, SizeKeys};

pub(crate) const FAMILY: Family = Family { model_types: &["opt"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let base = DecoderConfig::sized(raw, SizeKeys::default())?;
    let pre_norm = raw.flag_or("do_layer_norm_before", true)?;
    DecoderConfig {
        family: "opt",
        intermediate_size: raw.size("ffn_dim")?,
        max_positions: raw.size("max_position_embeddings")?,
        block: if pre_norm { BlockKind::PreNorm } else { BlockKind::PostNorm },
        positions: Positions::Learned { offset: 2 },
        activation: raw.activation("activation_function", "relu")?,
        biases: Biases::blocks(raw.flag_or("enable_bias", true)?),
        norm_gains: raw.flag_or("layer_norm_elementwise_affine", true)?,
        final_norm: pre_norm && !raw.flag_or("_remove_final_layer_norm", false)?,
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        embedding_size: raw.size_or("word_embed_proj_dim", base.hidden_size)?,
        ..base
    }
    .validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let projected = config.embedding_size != config.hidden_size;
    let layer = |layer| {
        let block = Module::new(format!("layers.{layer}"));
        LayerNames::new(
            block.parts(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            block.part("self_attn.out_proj"),
            block.mlp(["fc1"], "fc2"),
        )
        .norms(block.name("self_attn_layer_norm"), block.name("final_layer_norm"))
    };
    let names = TensorNames::new(&["model.decoder.", "decoder."], "embed_tokens", "final_layer_norm", layer);
    TensorNames {
        position_embedding: Some("embed_positions"),
        project_in: projected.then_some("project_in"),
        project_out: projected.then_some("project_out"),
        final_norm: names.final_norm.filter(|_| config.final_norm),
        ..names
    }
}
