//! Apertus (Swiss AI, 2025): LLaMA with norms on queries and keys, an MLP without gate, and xIELU, an activation with learned
//! numbers.

use serde_json::json;

use super::llama::{self, layer};
use super::{Family, LayerNames, TensorNames};
use crate::Error;
use crate::config::{Activation, DecoderConfig, QueryKeyNorms, RawConfig, RotaryDefaults};

pub(crate) const FAMILY: Family = Family { model_types: &["apertus", "apertus1p5_text"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let scaled = raw.get("rope_parameters").is_some() || raw.get("rope_scaling").is_some();
    let raw = &raw.with_defaults(&[("rms_norm_eps", json!(1e-5)), ("max_position_embeddings", json!(65536))]);
    let raw = &if scaled { raw.clone() } else { raw.with_defaults(&[("rope_parameters", rotary())]) };
    if let Some(size) = raw.get("output_vocab_size").filter(|size| raw.get("vocab_size") != Some(size)) {
        return Err(raw.problem(
            "output_vocab_size",
            format!("is {size}; a head of another size than the embedding is not implemented"),
        ));
    }
    let learned = raw.text_or("hidden_act", "xielu")? == "xielu";
    let activation = if learned { Activation::Silu } else { raw.activation("hidden_act", "")? };
    let theta = RotaryDefaults { theta: 12_000_000.0, ..RotaryDefaults::default() };
    let base = llama::base(&raw.without("hidden_act"), theta)?;
    DecoderConfig {
        family: "apertus",
        query_key_norms: Some(QueryKeyNorms::PerHead),
        activation,
        learned_activation: learned,
        gated_mlp: false,
        ..base
    }
    .validate(raw)
}

fn rotary() -> serde_json::Value {
    json!({
        "rope_type": "llama3",
        "rope_theta": 12_000_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    })
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| {
        let block = llama::module(index);
        LayerNames {
            mlp: block.mlp(["mlp.up_proj"], "mlp.down_proj"),
            activation: config.learned_activation.then(|| block.name("mlp.act_fn")),
            ..layer(index, &config)
        }
        .norms(block.name("attention_layernorm"), block.name("feedforward_layernorm"))
    })
}
