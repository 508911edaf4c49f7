//! Falcon (Almazrouei et al., 2023): rotary positions, one key and value head (7B) or a few (40B and later), attention and
//! MLP in parallel behind one or two LayerNorms.

use super::{Family, LayerNames, MlpNames, TensorNames, interleaved_qkv};
use crate::Error;
use crate::config::{BlockKind, DecoderConfig, Positions, RawConfig, Rotary, RotaryDefaults, head_size};
use crate::weights::Part;

pub(crate) const FAMILY: Family = Family { model_types: &["falcon"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    if raw.flag_or("alibi", false)? {
        return Err(
            raw.problem("alibi", "is true, which is not supported; Falcon models with rotary positions are")
        );
    }
    let hidden_size = raw.size("hidden_size")?;
    let heads = raw.size("num_attention_heads")?;
    let head_size = head_size(raw, "num_attention_heads", hidden_size, heads)?;
    let grouped = raw.flag_or("new_decoder_architecture", false)?;
    let parallel = raw.flag_or("parallel_attn", true)?;
    let norms = raw.size_or("num_ln_in_parallel_attn", if grouped { 2 } else { 1 })?;
    DecoderConfig {
        family: "falcon",
        vocab_size: raw.size("vocab_size")?,
        hidden_size,
        layers: raw.size("num_hidden_layers")?,
        heads,
        kv_heads: match (grouped, raw.flag_or("multi_query", true)?) {
            (true, _) => raw.size_or("num_kv_heads", heads)?,
            (false, true) => 1,
            (false, false) => heads,
        },
        head_size,
        intermediate_size: raw.size_or("ffn_hidden_size", 4 * hidden_size)?,
        max_positions: raw.size_or("max_position_embeddings", 2048)?,
        norm_eps: crate::convert::f32_from(raw.positive_or("layer_norm_epsilon", 1e-5)?),
        block: if parallel { BlockKind::Parallel } else { BlockKind::PreNorm },
        shared_norm: parallel && norms != 2,
        positions: Positions::Rotary(Rotary::read(raw, head_size, RotaryDefaults::default())?),
        activation: raw.activation("activation", "gelu")?,
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        embedding_size: hidden_size,
        eos_token_ids: raw.token_ids("eos_token_id")?,
        ..DecoderConfig::default()
    }
    .validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    TensorNames {
        roots: &["transformer.", ""],
        token_embedding: "word_embeddings",
        position_embedding: None,
        embedding_norm: None,
        project_in: None,
        project_out: None,
        final_norm: Some("ln_f"),
        head: "lm_head",
        layer: Box::new(move |layer| {
            let name = |part: &str| format!("h.{layer}.{part}");
            let (attention_norm, mlp_norm) = match (config.block, config.shared_norm) {
                (BlockKind::Parallel, false) => ("ln_attn", Some("ln_mlp")),
                (BlockKind::Parallel, true) => ("input_layernorm", None),
                _ => ("input_layernorm", Some("post_attention_layernorm")),
            };
            LayerNames {
                attention_norm: Some(name(attention_norm)),
                mlp_norm: mlp_norm.map(name),
                branch_norms: None,
                qkv: interleaved_qkv(&name("self_attention.query_key_value"), &config),
                query_key_norms: None,
                attention_output: Part::new(&name("self_attention.dense")),
                mlp: MlpNames::Dense {
                    up: vec![Part::new(&name("mlp.dense_h_to_4h"))],
                    down: Part::new(&name("mlp.dense_4h_to_h")),
                },
            }
        }),
    }
}
