//! MPT (MosaicML, 2023): ALiBi positions, LayerNorm and linear layers without biases, fused query-key-value.

use super::{Family, LayerNames, Module, TensorNames};
use crate::Error;
use crate::config::{DecoderConfig, Positions, RawConfig, SizeKeys};

pub(crate) const FAMILY: Family = Family { model_types: &["mpt"], config, names };

const KEYS: SizeKeys = SizeKeys { hidden: "d_model", layers: "n_layers", heads: "n_heads" };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let attention = raw.section("attn_config")?;
    if !attention.flag_or("alibi", true)? {
        return Err(attention.problem("alibi", "is false, which is not supported"));
    }
    if let Some(clip) = attention.get("clip_qkv") {
        return Err(attention.problem("clip_qkv", format!("is {clip}; clipping is not supported")));
    }
    let base = DecoderConfig::sized(raw, KEYS)?;
    if !base.heads.is_power_of_two() {
        return Err(raw.problem(
            KEYS.heads,
            format!("is {}; only powers of two are supported for this family", base.heads),
        ));
    }
    DecoderConfig {
        family: "mpt",
        max_positions: raw.size_or("max_seq_len", 2048)?,
        norm_eps: raw.float_or("layer_norm_epsilon", 1e-5)?,
        positions: Positions::Alibi,
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        ..base
    }
    .validate(raw)
}

fn names(_: &DecoderConfig) -> TensorNames {
    TensorNames::new(&["transformer.", ""], "wte", "norm_f", |layer| {
        let block = Module::new(format!("blocks.{layer}"));
        LayerNames::new(
            block.parts(["attn.Wqkv"]),
            block.part("attn.out_proj"),
            block.mlp(["ffn.up_proj"], "ffn.down_proj"),
        )
        .norms(block.name("norm_1"), block.name("norm_2"))
    })
}
