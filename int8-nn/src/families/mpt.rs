//! MPT (MosaicML, 2023): ALiBi positions, LayerNorm and linear layers without biases, fused query-key-value.

use super::{Family, LayerNames, Module, TensorNames};
use crate::Error;
use crate::config::{Biases, DecoderConfig, Positions, RawConfig, SizeKeys};

pub(crate) const FAMILY: Family = Family { model_types: &["mpt"], config, names };

const KEYS: SizeKeys = SizeKeys { hidden: "d_model", layers: "n_layers", heads: "n_heads" };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    // Of its keys, transformers' model reads these two; `alibi` is not among them, and the positions are always ALiBi's.
    let attention = raw.section("attn_config")?;
    // 0 is no limit.
    let qkv_limit = match attention.get("clip_qkv") {
        Some(clip) if clip.as_f64() != Some(0.0) => Some(attention.float_or("clip_qkv", 0.0)?),
        _ => None,
    };
    let attention_divisor = match attention.get("softmax_scale") {
        Some(_) => Some(attention.positive_or("softmax_scale", 1.0)?.powi(-2)),
        None => None,
    };
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
        qkv_limit,
        attention_divisor,
        biases: Biases::blocks(false),
        norm_bias: false,
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
