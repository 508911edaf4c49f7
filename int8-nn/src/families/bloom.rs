//! BLOOM (Scao et al., 2022): ALiBi positions, a LayerNorm after the embedding, tanh-GELU, query-key-value fused head by
//! head.

use super::{Family, LayerNames, MlpNames, TensorNames, interleaved_qkv};
use crate::Error;
use crate::config::{Activation, BlockKind, DecoderConfig, NormKind, Positions, RawConfig, head_size};
use crate::weights::Part;

pub(crate) const FAMILY: Family = Family { model_types: &["bloom"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    if raw.flag_or("apply_residual_connection_post_layernorm", false)? {
        return Err(
            raw.problem("apply_residual_connection_post_layernorm", "is true, which is not supported")
        );
    }
    // The first releases wrote `n_embed` and `num_attention_heads`.
    let hidden_size =
        if raw.get("hidden_size").is_some() { raw.size("hidden_size")? } else { raw.size("n_embed")? };
    let heads =
        if raw.get("n_head").is_some() { raw.size("n_head")? } else { raw.size("num_attention_heads")? };
    DecoderConfig {
        family: "bloom",
        vocab_size: raw.size("vocab_size")?,
        hidden_size,
        layers: if raw.get("n_layer").is_some() {
            raw.size("n_layer")?
        } else {
            raw.size("num_hidden_layers")?
        },
        heads,
        kv_heads: heads,
        head_size: head_size(raw, "n_head", hidden_size, heads)?,
        intermediate_size: 4 * hidden_size,
        // ALiBi has no limit of its own; the models were trained with 2048.
        max_positions: raw.size_or("seq_length", 2048)?,
        norm: NormKind::LayerNorm,
        norm_eps: crate::convert::f32_from(raw.positive_or("layer_norm_epsilon", 1e-5)?),
        block: BlockKind::PreNorm,
        positions: Positions::Alibi,
        activation: Activation::GeluTanh,
        gated_mlp: false,
        sliding_window: None,
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
        embedding_norm: Some("word_embeddings_layernorm"),
        project_in: None,
        project_out: None,
        final_norm: Some("ln_f"),
        head: "lm_head",
        layer: Box::new(move |layer| {
            let name = |part: &str| format!("h.{layer}.{part}");
            LayerNames {
                attention_norm: Some(name("input_layernorm")),
                mlp_norm: Some(name("post_attention_layernorm")),
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
