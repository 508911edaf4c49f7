//! BLOOM (Scao et al., 2022): ALiBi positions, a LayerNorm after the embedding, tanh-GELU, query-key-value fused head by
//! head.

use super::{Family, LayerNames, Module, TensorNames, interleaved_qkv};
use crate::Error;
use crate::config::{Activation, DecoderConfig, Positions, RawConfig, SizeKeys};

pub(crate) const FAMILY: Family = Family { model_types: &["bloom"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    if raw.flag_or("apply_residual_connection_post_layernorm", false)? {
        return Err(
            raw.problem("apply_residual_connection_post_layernorm", "is true, which is not supported")
        );
    }
    // The first releases wrote `n_embed` and `num_attention_heads`.
    let present = |key: &'static str, other| if raw.get(key).is_some() { key } else { other };
    let keys = SizeKeys {
        hidden: present("hidden_size", "n_embed"),
        layers: present("n_layer", "num_hidden_layers"),
        heads: present("n_head", "num_attention_heads"),
    };
    DecoderConfig {
        family: "bloom",
        // ALiBi has no limit of its own; the models were trained with 2048.
        max_positions: raw.size_or("seq_length", 2048)?,
        norm_eps: raw.float_or("layer_norm_epsilon", 1e-5)?,
        positions: Positions::Alibi,
        activation: Activation::GeluTanh,
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        ..DecoderConfig::sized(raw, keys)?
    }
    .validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    let layer = move |layer| {
        let block = Module::new(format!("h.{layer}"));
        LayerNames::new(
            interleaved_qkv(&block.name("self_attention.query_key_value"), &config),
            block.part("self_attention.dense"),
            block.mlp(["mlp.dense_h_to_4h"], "mlp.dense_4h_to_h"),
        )
        .norms(block.name("input_layernorm"), block.name("post_attention_layernorm"))
    };
    TensorNames {
        embedding_norm: Some("word_embeddings_layernorm"),
        ..TensorNames::new(&["transformer.", ""], "word_embeddings", "ln_f", layer)
    }
}
