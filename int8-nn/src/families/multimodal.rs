//! The text parts of models that also read images or audio: Mistral Small 3.1 (Mistral AI, 2025), Qwen2-VL to Qwen3-VL (Qwen Team,
//! 2024, 2025), LLaVA (Liu et al., 2023) and others whose text part is a family of its own. Positions of text are one number a
//! token, so that rotary positions in several dimensions are the usual ones.

use serde_json::{Value, json};

use super::{FAMILIES, Family, TensorNames};
use crate::Error;
use crate::config::{DecoderConfig, RawConfig};

pub(crate) const FAMILY: Family = Family {
    model_types: &[
        "mistral3",
        "qwen2_vl",
        "qwen2_5_vl",
        "qwen3_vl",
        "qwen3_5",
        "qwen3_5_moe",
        "llava",
        "llava_next",
        "llava_onevision",
        "vipllava",
        "internvl",
        "idefics3",
        "smolvlm",
        "aya_vision",
        "got_ocr2",
        "fuyu",
        "moss_transcribe_diarize",
    ],
    config,
    names,
};

/// The family of a text part: `kind`, or that of the part's own `model_type` if it has one.
struct Text {
    kind: &'static str,
    fixed: bool,
}

fn text_of(model_type: &str) -> Text {
    let fixed = |kind| Text { kind, fixed: true };
    let default = |kind| Text { kind, fixed: false };
    match model_type {
        "qwen2_vl" | "qwen2_5_vl" => fixed("qwen2"),
        "qwen3_vl" => fixed("qwen3"),
        "qwen3_5" => fixed("qwen3_5_text"),
        "qwen3_5_moe" => fixed("qwen3_5_moe_text"),
        "fuyu" => fixed("persimmon"),
        "mistral3" => default("mistral"),
        "llava_onevision" | "internvl" | "got_ocr2" => default("qwen2"),
        "aya_vision" => default("cohere2"),
        "moss_transcribe_diarize" => default("qwen3"),
        _ => default("llama"),
    }
}

/// The family of this name, if it is no model of several parts.
fn family_of(kind: &str) -> Option<&'static Family> {
    let is = |family: &&&Family| family.model_types.contains(&kind);
    FAMILIES.iter().filter(|_| !FAMILY.model_types.contains(&kind)).find(is).copied()
}

fn config(whole: &RawConfig) -> Result<DecoderConfig, Error> {
    const TIED: &str = "tie_word_embeddings";
    let model_type = whole.text_or("model_type", "")?;
    let text = whole.section("text_config")?;
    let Text { kind, fixed } = text_of(model_type);
    let own = whole.get("text_config").filter(|_| !fixed);
    let kind = match own {
        Some(_) => text.text_or("model_type", kind)?.to_owned(),
        None => kind.to_owned(),
    };
    let Some(family) = family_of(&kind) else {
        return Err(text.problem("model_type", format!("is {kind:?}; such a text part is not implemented")));
    };
    let mut raw = text.without("model_type").with_defaults(&[("model_type", json!(kind))]);
    if let Some(ids) = whole.get("eos_token_id") {
        raw = raw.with_defaults(&[("eos_token_id", ids.clone())]);
    }
    let theta = |raw: &RawConfig, theta: f64| raw.with_defaults(&[("rope_theta", json!(theta))]);
    raw = match model_type {
        "qwen2_vl" | "qwen2_5_vl" => {
            let raw = theta(&without_sections(&raw), 1_000_000.0);
            raw.with_defaults(&[("rms_norm_eps", json!(1e-5)), ("num_key_value_heads", json!(8))])
        }
        "qwen3_vl" => theta(&without_sections(&raw), 500_000.0),
        "fuyu" => theta(&raw, 25_000.0),
        _ if kind == "llama" => raw.with_defaults(&[
            ("hidden_size", json!(4096)),
            ("intermediate_size", json!(11008)),
            ("num_hidden_layers", json!(32)),
            ("num_attention_heads", json!(32)),
        ]),
        _ => raw,
    };
    // A head of its own counts where the checkpoint has one.
    let tied = whole.flag_or(TIED, true)? || text.flag_or(TIED, false)?;
    let config = DecoderConfig { tied_embeddings: tied, ..(family.config)(&raw)? };
    // transformers does not multiply the logits of this one.
    let logit_scale = config.logit_scale.filter(|_| model_type != "aya_vision");
    Ok(DecoderConfig { logit_scale, ..config })
}

/// Without the sections of a head's dimensions that images would turn differently.
fn without_sections(raw: &RawConfig) -> RawConfig {
    const OLD: &str = "rope_scaling";
    let kind_of = |scaling: &Value| {
        let kind = scaling.get("rope_type").or_else(|| scaling.get("type"));
        kind.and_then(Value::as_str).is_none_or(|kind| kind == "mrope" || kind == "default")
    };
    if raw.get(OLD).is_some_and(kind_of) { raw.without(OLD) } else { raw.clone() }
}

fn names(config: &DecoderConfig) -> TensorNames {
    const ROOTS: &[&str] = &[
        "model.language_model.",
        "language_model.model.",
        "model.text_model.",
        "text_model.model.",
        "model.",
        "",
    ];
    let names = family_of(config.family).map_or(super::llama::names as fn(&_) -> _, |family| family.names);
    TensorNames { roots: ROOTS, ..names(config) }
}
