//! LLaMA with an MLP without gate: Nemotron (NVIDIA, 2024), AFM (Arcee, 2025), Jais 2 (2025) and nanochat (Karpathy, 2025).

use serde_json::json;

use super::llama::{self, layer};
use super::{Family, LayerNames, TensorNames};
use crate::Error;
use crate::config::{Biases, DecoderConfig, NormKind, QueryKeyNorms, RawConfig, RotaryDefaults};
use crate::weights::{Part, Rows};

pub(crate) const FAMILY: Family =
    Family { model_types: &["nemotron", "arcee", "jais2", "nanochat"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[("hidden_act", json!("relu2"))]);
    match raw.text_or("model_type", "")? {
        "arcee" => arcee(raw),
        "jais2" => jais(raw),
        "nanochat" => nanochat(raw),
        _ => nemotron(raw),
    }?
    .validate(raw)
}

fn biases(raw: &RawConfig, default: bool) -> Result<Biases, Error> {
    Ok(Biases::of(raw.flag_or("attention_bias", default)?, raw.flag_or("mlp_bias", default)?))
}

fn nemotron(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[("max_position_embeddings", json!(4096))]);
    Ok(DecoderConfig {
        family: "nemotron",
        norm: NormKind::LayerNorm,
        norm_eps: raw.float_or("norm_eps", 1e-5)?,
        norm_gain_less_one: true,
        gated_mlp: false,
        biases: biases(raw, false)?,
        ..llama::base(raw, RotaryDefaults { share: 0.5, partial: true, ..RotaryDefaults::default() })?
    })
}

fn arcee(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[("rms_norm_eps", json!(1e-5)), ("max_position_embeddings", json!(4096))]);
    let base = llama::base(raw, RotaryDefaults::default())?;
    Ok(DecoderConfig { family: "arcee", gated_mlp: false, biases: biases(raw, false)?, ..base })
}

fn jais(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[("max_position_embeddings", json!(8192))]);
    Ok(DecoderConfig {
        family: "jais2",
        norm: NormKind::LayerNorm,
        norm_eps: raw.float_or("layer_norm_eps", 1e-5)?,
        gated_mlp: false,
        biases: biases(raw, true)?,
        ..llama::base(raw, RotaryDefaults::default())?
    })
}

fn nanochat(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let cap = raw.is_null("final_logit_softcapping");
    let cap = if cap { None } else { Some(raw.float_or("final_logit_softcapping", 15.0)?) };
    Ok(DecoderConfig {
        family: "nanochat",
        norm_gains: false,
        // After the rotation, which changes no norm of a head.
        query_key_norms: Some(QueryKeyNorms::PerHead),
        gated_mlp: false,
        logit_softcap: cap,
        ..llama::base(raw, RotaryDefaults::default())?
    })
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    if config.family == "nanochat" {
        let names = llama::tensors(move |index| nanochat_layer(index, &config));
        return TensorNames { embedding_norm: Some("norm"), ..names };
    }
    llama::tensors(move |index| {
        let block = llama::module(index);
        LayerNames { mlp: block.mlp(["mlp.up_proj"], "mlp.down_proj"), ..layer(index, &config) }
    })
}

/// Heads turn the other way: with the halves of queries and keys exchanged, that is the usual rotation.
fn nanochat_layer(index: usize, config: &DecoderConfig) -> LayerNames {
    let block = llama::module(index);
    let size = config.head_size;
    let exchanged = |name: &str, heads: usize| {
        let rows = (0..heads * size).map(|row| row / size * size + (row + size / 2) % size).collect();
        Part::new(&block.name(name)).rows(Rows::Gather { rows, of: heads * size })
    };
    LayerNames {
        qkv: vec![
            exchanged("self_attn.q_proj", config.heads),
            exchanged("self_attn.k_proj", config.kv_heads),
            block.part("self_attn.v_proj"),
        ],
        mlp: block.mlp(["mlp.fc1"], "mlp.fc2"),
        ..layer(index, config)
    }
}
