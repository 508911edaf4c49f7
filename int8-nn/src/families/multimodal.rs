//! The text parts of models that also read images: Mistral Small 3.1 and Ministral 3 (Mistral AI, 2025), Qwen2-VL, Qwen2.5-VL and
//! Qwen3-VL (Qwen Team, 2024, 2025), LLaVA (Liu et al., 2023). Their positions in text are one number a token, so that rotary
//! positions in several dimensions are the usual ones.

use serde_json::{Value, json};

use super::{Family, TensorNames, llama};
use crate::Error;
use crate::config::{DecoderConfig, RawConfig};

pub(crate) const FAMILY: Family = Family {
    model_types: &["mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava"],
    config,
    names: |config| {
        let roots = &["model.language_model.", "language_model.model.", "model.", ""];
        TensorNames { roots, ..llama::names(config) }
    },
};

fn config(whole: &RawConfig) -> Result<DecoderConfig, Error> {
    const TIED: &str = "tie_word_embeddings";
    let text = whole.section("text_config")?;
    let kind = match whole.text_or("model_type", "")? {
        "qwen2_vl" | "qwen2_5_vl" => "qwen2".to_owned(),
        "qwen3_vl" => "qwen3".to_owned(),
        "mistral3" => text.text_or("model_type", "mistral")?.to_owned(),
        _ => text.text_or("model_type", "llama")?.to_owned(),
    };
    let mut raw = text.without("model_type").with_defaults(&[("model_type", json!(kind))]);
    if let Some(ids) = whole.get("eos_token_id") {
        raw = raw.with_defaults(&[("eos_token_id", ids.clone())]);
    }
    if kind.starts_with("qwen") {
        raw = qwen(&raw, &kind);
    }
    if kind == "llama" {
        raw = raw.with_defaults(&[
            ("hidden_size", json!(4096)),
            ("intermediate_size", json!(11008)),
            ("num_hidden_layers", json!(32)),
            ("num_attention_heads", json!(32)),
        ]);
    }
    let family = [&llama::FAMILY, &llama::ALIASES]
        .into_iter()
        .find(|family| family.model_types.contains(&kind.as_str()));
    let Some(family) = family else {
        return Err(text.problem("model_type", format!("is {kind:?}; its text part is not implemented")));
    };
    // A head of its own counts where the checkpoint has one.
    let qwen = kind.starts_with("qwen");
    let tied = whole.flag_or(TIED, !qwen)? || text.flag_or(TIED, false)?;
    Ok(DecoderConfig { tied_embeddings: tied, ..(family.config)(&raw)? })
}

/// Without the sections of a head's dimensions that images would turn differently.
fn qwen(raw: &RawConfig, kind: &str) -> RawConfig {
    const OLD: &str = "rope_scaling";
    let scaling = raw.get(OLD);
    let kind_of = |scaling: &Value| {
        let kind = scaling.get("rope_type").or_else(|| scaling.get("type"));
        kind.and_then(Value::as_str).is_none_or(|kind| kind == "mrope" || kind == "default")
    };
    let plain = scaling.is_some_and(kind_of);
    let raw = if plain { raw.without(OLD) } else { raw.clone() };
    let (theta, eps) = if kind == "qwen2" { (1_000_000.0, 1e-5) } else { (500_000.0, 1e-6) };
    raw.with_defaults(&[("rope_theta", json!(theta)), ("rms_norm_eps", json!(eps))])
}
