//! ModernBERT (Warner et al., 2024) and its decoders (Weller et al., 2025): LayerNorms without bias, a norm of the embedding in place
//! of the first block's, gated GELU, and windows with positions of their own in two of three blocks. The decoders have a linear layer
//! with a norm before the head.

use serde_json::json;

use super::llama;
use super::{EncoderFamily, EncoderNames, Family, LayerNames, TensorNames};
use crate::Error;
use crate::config::{
    AlternateAttention, Biases, BlockSet, DecoderConfig, EncoderConfig, NormKind, Positions, RawConfig,
    RotaryDefaults, listed_layers,
};

pub(crate) const FAMILY: Family = Family { model_types: &["modernbert-decoder"], config, names };

/// Sentence models such as gte-modernbert are of this family.
pub(crate) const ENCODER: EncoderFamily =
    EncoderFamily { model_types: &["modernbert"], config: encoder_config, names: encoder_names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let base = blocks(raw, 0)?;
    DecoderConfig {
        family: "modernbert-decoder",
        head_activation: Some(raw.activation("classifier_activation", "gelu")?),
        biases: Biases {
            head: raw.flag_or("decoder_bias", true)?,
            head_transform: raw.flag_or("classifier_bias", false)?,
            ..base.biases
        },
        ..base
    }
    .validate(raw)
}

fn encoder_config(raw: &RawConfig) -> Result<EncoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("vocab_size", json!(50368)),
        ("hidden_size", json!(768)),
        ("num_hidden_layers", json!(22)),
        ("num_attention_heads", json!(12)),
    ]);
    // A token sees as many others to each side as the window has, and itself.
    let network = DecoderConfig { family: "modernbert", ..blocks(raw, 1)? };
    Ok(EncoderConfig::of(network.validate(raw)?))
}

/// Embedding and blocks. `own`: whether the window does not count the token itself.
fn blocks(raw: &RawConfig, own: usize) -> Result<DecoderConfig, Error> {
    const WINDOW: &str = "local_attention";
    let raw = &raw.without("head_dim").with_defaults(&[
        ("intermediate_size", json!(1152)),
        ("max_position_embeddings", json!(8192)),
        ("tie_word_embeddings", json!(true)),
    ]);
    let of = |kind: &str, old: &str, theta: f64| {
        let theta = raw.positive_or(old, theta)?;
        llama::rotary_of(raw, kind, RotaryDefaults { theta, ..RotaryDefaults::default() })
    };
    if raw.get("rope_scaling").is_some() {
        return Err(raw.problem("rope_scaling", "is not implemented for this family; use `rope_parameters`"));
    }
    let full = of("full_attention", "global_rope_theta", 160_000.0)?;
    let sliding = of("sliding_attention", "local_rope_theta", 10_000.0)?;
    let base = llama::base(&raw.without("rope_parameters"), RotaryDefaults::default())?;
    let period = raw.size_or("global_attn_every_n_layers", 3)?;
    let marks =
        (0..listed_layers(raw, "num_hidden_layers")?).map(|layer| !layer.is_multiple_of(period)).collect();
    // transformers writes the window beside the key that it reads it from.
    let window = match raw.get("sliding_window") {
        Some(_) => raw.size("sliding_window")?,
        None => raw.size_or(WINDOW, 128)? / 2,
    };
    let alternate = AlternateAttention {
        blocks: raw.sliding_blocks(base.layers, BlockSet::Marked(marks))?,
        positions: Positions::Rotary(sliding),
        sliding_window: Some((window + own).max(1)),
    };
    let attention = raw.flag_or("attention_bias", false)?;
    Ok(DecoderConfig {
        norm: NormKind::LayerNorm,
        norm_eps: raw.float_or("norm_eps", 1e-5)?,
        norm_bias: raw.flag_or("norm_bias", false)?,
        positions: Positions::Rotary(full),
        alternate: Some(alternate),
        activation: raw.activation("hidden_activation", "gelu")?,
        biases: Biases::of(attention, raw.flag_or("mlp_bias", false)?),
        ..base
    })
}

/// The names of a block whose queries, keys and values are these modules.
fn layer<const N: usize>(index: usize, qkv: [&str; N]) -> LayerNames {
    let block = llama::module(index);
    LayerNames {
        attention_norm: (index > 0).then(|| block.name("attn_norm")),
        mlp_norm: Some(block.name("mlp_norm")),
        ..LayerNames::new(block.parts(qkv), block.part("attn.Wo"), block.mlp(["mlp.Wi"], "mlp.Wo"))
    }
}

fn encoder_names(_: &EncoderConfig) -> EncoderNames {
    EncoderNames {
        token_embedding: "embeddings.tok_embeddings",
        embedding_norm: Some("embeddings.norm"),
        final_norm: Some("final_norm"),
        ..EncoderNames::new(&["", "model."], |index| layer(index, ["attn.Wqkv"]))
    }
}

fn names(_: &DecoderConfig) -> TensorNames {
    let layer = |index| layer(index, ["attn.q_proj", "attn.k_proj", "attn.v_proj"]);
    TensorNames {
        embedding_norm: Some("embeddings.norm"),
        head: "decoder",
        head_transform: Some(["lm_head.dense", "lm_head.norm"]),
        ..TensorNames::new(&["model.", ""], "embeddings.tok_embeddings", "final_norm", layer)
    }
}
