//! BLOOM (Scao et al., 2022): ALiBi positions, a LayerNorm after the embedding, tanh-GELU, query-key-value fused head by
//! head.

use super::{Family, LayerNames, Module, TensorNames, interleaved_qkv};
use crate::Error;
use crate::config::{Activation, Biases, BlockKind, DecoderConfig, Positions, RawConfig, SizeKeys};

pub(crate) const FAMILY: Family = Family { model_types: &["bloom"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[("vocab_size", 250_880.into())]);
    // The first releases wrote `n_embed` and `num_attention_heads`; transformers has defaults.
    let present = |key: &'static str, other, default: usize| match (raw.get(key), raw.get(other)) {
        (None, Some(_)) => (other, default),
        _ => (key, default),
    };
    let keys = [
        present("hidden_size", "n_embed", 64),
        present("n_layer", "num_hidden_layers", 2),
        present("n_head", "num_attention_heads", 8),
    ];
    let raw = &raw.with_defaults(&keys.map(|(key, default)| (key, default.into())));
    let [hidden, layers, heads] = keys.map(|(key, _)| key);
    let keys = SizeKeys { hidden, layers, heads };
    // A product of several parts, added one after the other, without the bias.
    let unbiased = raw.size_or("pretraining_tp", 1)? > 1 && raw.flag_or("slow_but_exact", false)?;
    let residual_normed = raw.flag_or("apply_residual_connection_post_layernorm", false)?;
    DecoderConfig {
        family: "bloom",
        // ALiBi has no limit of its own; the models were trained with 2048.
        max_positions: raw.size_or("seq_length", 2048)?,
        norm_eps: raw.float_or("layer_norm_epsilon", 1e-5)?,
        block: if residual_normed { BlockKind::NormedResidual } else { BlockKind::PreNorm },
        biases: Biases { attention_output: !unbiased, down: !unbiased, ..Biases::blocks(true) },
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
