//! XGLM (Lin et al., 2021) and CTRL (Keskar et al., 2019): decoders with sinusoidal positions.

use super::{Family, LayerNames, MlpNames, Module, TensorNames};
use crate::Error;
use crate::config::{Activation, Biases, DecoderConfig, Positions, RawConfig, Sinusoids, SizeKeys};
use crate::convert;

pub(crate) const FAMILY: Family = Family { model_types: &["xglm", "ctrl"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    match raw.text_or("model_type", "")? {
        "ctrl" => ctrl(raw),
        _ => xglm(raw),
    }?
    .validate(raw)
}

fn xglm(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    if raw.flag_or("add_cross_attention", false)? {
        return Err(raw.problem("add_cross_attention", "is true; this family is a decoder alone here"));
    }
    let keys = SizeKeys { hidden: "d_model", layers: "num_layers", heads: "attention_heads" };
    let sized = DecoderConfig::sized(raw, keys)?;
    let scaled = raw.flag_or("scale_embedding", true)?;
    let zeros = Some(raw.index_or("pad_token_id", 1)?).filter(|_| !raw.is_null("pad_token_id"));
    Ok(DecoderConfig {
        family: "xglm",
        intermediate_size: raw.size_or("ffn_dim", 4096)?,
        max_positions: raw.size_or("max_position_embeddings", 2048)?,
        positions: Positions::Sinusoidal(Sinusoids { offset: 2, inclusive: true, zeros }),
        activation: raw.activation("activation_function", "gelu")?,
        embedding_scale: scaled.then(|| convert::f32_from(convert::f64_from(sized.hidden_size).sqrt())),
        scales_tokens_alone: true,
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        ..sized
    })
}

fn ctrl(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let sized = DecoderConfig::sized(raw, SizeKeys { hidden: "n_embd", layers: "n_layer", heads: "n_head" })?;
    Ok(DecoderConfig {
        family: "ctrl",
        intermediate_size: raw.size_or("dff", 8192)?,
        max_positions: raw.size_or("n_positions", 256)?,
        // That of the blocks' norms, whatever the configuration says.
        norm_eps: 1e-6,
        positions: Positions::Sinusoidal(Sinusoids { offset: 0, inclusive: false, zeros: None }),
        activation: Activation::Relu,
        embedding_scale: Some(convert::f32_from(convert::f64_from(sized.hidden_size).sqrt())),
        scales_tokens_alone: true,
        biases: Biases { head: true, ..sized.biases },
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        ..sized
    })
}

fn names(config: &DecoderConfig) -> TensorNames {
    if config.family == "ctrl" {
        return TensorNames::new(&["transformer.", ""], "w", "layernorm", ctrl_layer);
    }
    TensorNames::new(&["model.", ""], "embed_tokens", "layer_norm", |index| {
        let block = super::llama::module(index);
        LayerNames::new(
            block.parts(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            block.part("self_attn.out_proj"),
            block.mlp(["fc1"], "fc2"),
        )
        .norms(block.name("self_attn_layer_norm"), block.name("final_layer_norm"))
    })
}

fn ctrl_layer(index: usize) -> LayerNames {
    let block = Module::new(format!("h.{index}"));
    let attention = Module::new(block.name("multi_head_attention"));
    LayerNames::new(
        attention.parts(["Wq", "Wk", "Wv"]),
        attention.part("dense"),
        MlpNames::Dense { up: block.parts(["ffn.0"]), down: block.part("ffn.2") },
    )
    .norms(block.name("layernorm1"), block.name("layernorm2"))
}
