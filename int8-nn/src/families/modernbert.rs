//! ModernBERT's decoders (Weller et al., 2025): LayerNorms without bias, a norm of the embedding in place of the first block's, gated
//! GELU, windows in two of three blocks, and a linear layer with a norm before the head.

use serde_json::json;

use super::llama;
use super::{Family, LayerNames, TensorNames};
use crate::Error;
use crate::config::{
    AlternateAttention, Biases, BlockSet, DecoderConfig, NormKind, Positions, RawConfig, RotaryDefaults,
};

pub(crate) const FAMILY: Family = Family { model_types: &["modernbert-decoder"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
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
    let marks = (0..base.layers).map(|layer| !layer.is_multiple_of(period)).collect();
    // transformers writes the window beside the key that it reads it from.
    let window = match raw.get("sliding_window") {
        Some(_) => raw.size("sliding_window")?,
        None => raw.size_or(WINDOW, 128)? / 2,
    };
    let alternate = AlternateAttention {
        blocks: raw.sliding_blocks(base.layers, BlockSet::Marked(marks))?,
        positions: Positions::Rotary(sliding),
        sliding_window: Some(window.max(1)),
    };
    let attention = raw.flag_or("attention_bias", false)?;
    let biases = Biases {
        head: raw.flag_or("decoder_bias", true)?,
        head_transform: raw.flag_or("classifier_bias", false)?,
        ..Biases::of(attention, raw.flag_or("mlp_bias", false)?)
    };
    DecoderConfig {
        family: "modernbert-decoder",
        norm: NormKind::LayerNorm,
        norm_eps: raw.float_or("norm_eps", 1e-5)?,
        norm_bias: raw.flag_or("norm_bias", false)?,
        positions: Positions::Rotary(full),
        alternate: Some(alternate),
        activation: raw.activation("hidden_activation", "gelu")?,
        head_activation: Some(raw.activation("classifier_activation", "gelu")?),
        biases,
        ..base
    }
    .validate(raw)
}

fn names(_: &DecoderConfig) -> TensorNames {
    let layer = |index| {
        let block = llama::module(index);
        LayerNames {
            attention_norm: (index > 0).then(|| block.name("attn_norm")),
            mlp_norm: Some(block.name("mlp_norm")),
            ..LayerNames::new(
                block.parts(["attn.q_proj", "attn.k_proj", "attn.v_proj"]),
                block.part("attn.Wo"),
                block.mlp(["mlp.Wi"], "mlp.Wo"),
            )
        }
    };
    TensorNames {
        embedding_norm: Some("embeddings.norm"),
        head: "decoder",
        head_transform: Some(["lm_head.dense", "lm_head.norm"]),
        ..TensorNames::new(&["model.", ""], "embeddings.tok_embeddings", "final_norm", layer)
    }
}
