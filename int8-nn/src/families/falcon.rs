//! Falcon (Almazrouei et al., 2023): rotary positions, one key and value head (7B) or a few (40B and later), attention and
//! MLP in parallel behind one or two LayerNorms.

use super::{Family, LayerNames, Module, TensorNames, interleaved_qkv};
use crate::Error;
use crate::config::{
    Biases, BlockKind, DecoderConfig, Positions, RawConfig, Rotary, RotaryDefaults, SizeKeys,
};

pub(crate) const FAMILY: Family = Family { model_types: &["falcon"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    // transformers 5.24 adds the biases once with its SDPA attention and twice with the eager one: there is no one right answer.
    if raw.flag_or("alibi", false)? {
        return Err(raw.problem(
            "alibi",
            "is true, which is not supported: transformers computes it in two ways that disagree; Falcon models with rotary \
             positions are",
        ));
    }
    let base = DecoderConfig::sized(raw, SizeKeys::default())?;
    let rotary = Rotary::read(raw, base.head_size, RotaryDefaults::default())?;
    let grouped = raw.flag_or("new_decoder_architecture", false)?;
    let parallel = raw.flag_or("parallel_attn", true)?;
    let norms = raw.size_or("num_ln_in_parallel_attn", if grouped { 2 } else { 1 })?;
    DecoderConfig {
        family: "falcon",
        kv_heads: match (grouped, raw.flag_or("multi_query", true)?) {
            (true, _) => raw.size_or("num_kv_heads", base.heads)?,
            (false, true) => 1,
            (false, false) => base.heads,
        },
        intermediate_size: raw.size_or("ffn_hidden_size", base.intermediate_size)?,
        max_positions: rotary.max_positions(raw.size_or("max_position_embeddings", 2048)?),
        norm_eps: raw.float_or("layer_norm_epsilon", 1e-5)?,
        block: if parallel { BlockKind::Parallel } else { BlockKind::PreNorm },
        shared_norm: parallel && norms != 2,
        positions: Positions::Rotary(rotary),
        biases: Biases::blocks(raw.flag_or("bias", false)?),
        activation: raw.activation("activation", "gelu")?,
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        ..base
    }
    .validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    TensorNames::new(&["transformer.", ""], "word_embeddings", "ln_f", move |layer| {
        let block = Module::new(format!("h.{layer}"));
        let names = LayerNames::new(
            interleaved_qkv(&block.name("self_attention.query_key_value"), &config),
            block.part("self_attention.dense"),
            block.mlp(["mlp.dense_h_to_4h"], "mlp.dense_4h_to_h"),
        );
        match (config.block, config.shared_norm) {
            (BlockKind::Parallel, false) => names.norms(block.name("ln_attn"), block.name("ln_mlp")),
            (BlockKind::Parallel, true) => names.shared_norm(block.name("input_layernorm")),
            _ => names.norms(block.name("input_layernorm"), block.name("post_attention_layernorm")),
        }
    })
}
