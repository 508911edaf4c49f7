//! MPT (MosaicML, 2023): ALiBi positions, LayerNorm and linear layers without biases, fused query-key-value.

use super::{Family, LayerNames, MlpNames, TensorNames};
use crate::Error;
use crate::config::{DecoderConfig, Positions, RawConfig, head_size};
use crate::weights::Part;

pub(crate) const FAMILY: Family = Family { model_types: &["mpt"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let hidden_size = raw.size("d_model")?;
    let heads = raw.size("n_heads")?;
    let attention = raw.section("attn_config")?;
    if !attention.flag_or("alibi", true)? {
        return Err(attention.problem("alibi", "is false, which is not supported"));
    }
    if !heads.is_power_of_two() {
        return Err(
            raw.problem("n_heads", format!("is {heads}; only powers of two are supported for this family"))
        );
    }
    if let Some(clip) = attention.get("clip_qkv") {
        return Err(attention.problem("clip_qkv", format!("is {clip}; clipping is not supported")));
    }
    DecoderConfig {
        family: "mpt",
        vocab_size: raw.size("vocab_size")?,
        hidden_size,
        layers: raw.size("n_layers")?,
        heads,
        kv_heads: heads,
        head_size: head_size(raw, "n_heads", hidden_size, heads)?,
        intermediate_size: 4 * hidden_size,
        max_positions: raw.size_or("max_seq_len", 2048)?,
        norm_eps: crate::convert::f32_from(raw.positive_or("layer_norm_epsilon", 1e-5)?),
        positions: Positions::Alibi,
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        embedding_size: hidden_size,
        eos_token_ids: raw.token_ids("eos_token_id")?,
        ..DecoderConfig::default()
    }
    .validate(raw)
}

fn names(_: &DecoderConfig) -> TensorNames {
    TensorNames {
        roots: &["transformer.", ""],
        token_embedding: "wte",
        position_embedding: None,
        embedding_norm: None,
        project_in: None,
        project_out: None,
        final_norm: Some("norm_f"),
        head: "lm_head",
        layer: Box::new(|layer| {
            let name = |part: &str| format!("blocks.{layer}.{part}");
            LayerNames {
                attention_norm: Some(name("norm_1")),
                mlp_norm: Some(name("norm_2")),
                branch_norms: None,
                qkv: vec![Part::new(&name("attn.Wqkv"))],
                query_key_norms: None,
                attention_output: Part::new(&name("attn.out_proj")),
                mlp: MlpNames::Dense {
                    up: vec![Part::new(&name("ffn.up_proj"))],
                    down: Part::new(&name("ffn.down_proj")),
                },
            }
        }),
    }
}
