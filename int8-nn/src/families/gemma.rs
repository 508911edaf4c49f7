//! Gemma (Gemma Team, 2024, 2025), versions 1 to 3, text only: embeddings scaled by √hidden, RMSNorm gains stored less one,
//! gated tanh-GELU. Gemma 2 adds norms at the end of the branches, soft caps and alternating windows, VaultGemma (2025) has these alone; Gemma 3 norms on
//! queries and keys and a rotary base of its own for the windowed blocks.

use super::llama::{self, layer};
use super::{Family, LayerNames, TensorNames};
use crate::Error;
use crate::config::{
    Activation, AlternateAttention, Biases, BlockSet, DecoderConfig, NormKind, Positions, QueryKeyNorms,
    RawConfig, Rotary, RotaryDefaults,
};
use crate::convert;

pub(crate) const FAMILY: Family =
    Family { model_types: &["gemma", "gemma2", "gemma3_text", "gemma3", "vaultgemma"], config, names };

/// Gemma 3's blocks without window.
const GLOBAL: RotaryDefaults = RotaryDefaults { theta: 1_000_000.0, share: 1.0, partial: false };

fn config(whole: &RawConfig) -> Result<DecoderConfig, Error> {
    // The text part of a multimodal model.
    let raw = &whole.section("text_config")?;
    let family = match whole.text_or("model_type", "gemma")? {
        "gemma" => "gemma",
        "gemma2" => "gemma2",
        "vaultgemma" => "vaultgemma",
        _ => "gemma3",
    };
    const BIDIRECTIONAL: &str = "use_bidirectional_attention";
    if raw.flag_or(BIDIRECTIONAL, false)? {
        return Err(
            raw.problem(BIDIRECTIONAL, "is true, which makes an encoder; only decoders are supported")
        );
    }
    // Released files omit the defaults of their version.
    let hidden_size = raw.size("hidden_size")?;
    let heads = raw.size_or("num_attention_heads", 8)?;
    let head_size = raw.size_or("head_dim", 256)?;
    let layers = raw.size("num_hidden_layers")?;
    let (positions, alternate) = match family {
        "gemma" => (Rotary::read(raw, head_size, RotaryDefaults::default())?, None),
        "gemma2" | "vaultgemma" => {
            let rotary = Rotary::read(raw, head_size, RotaryDefaults::default())?;
            (rotary.clone(), Some((rotary, 2)))
        }
        _ => {
            let (global, local) = gemma3_rotary(raw, head_size)?;
            (global, Some((local, raw.size_or("sliding_window_pattern", 6)?)))
        }
    };
    let alternate = match alternate {
        None => None,
        Some((rotary, period)) => Some(AlternateAttention {
            blocks: raw.sliding_blocks(layers, BlockSet::AllButEach { period })?,
            positions: Positions::Rotary(rotary),
            sliding_window: Some(raw.size_or("sliding_window", 4096)?),
        }),
    };
    let cap = |key: &str, default: Option<f64>| -> Result<Option<f32>, Error> {
        let value = if raw.get(key).is_some() { Some(raw.positive_or(key, 0.0)?) } else { default };
        Ok(value.map(convert::f32_from))
    };
    // A null key means no cap; an absent one means the version's default.
    let absent = |key: &str, default: f64| {
        (matches!(family, "gemma2" | "vaultgemma") && !raw.mentions(key)).then_some(default)
    };
    let attention_cap = absent("attn_logit_softcapping", 50.0);
    let logit_cap = absent("final_logit_softcapping", 30.0);
    // The first files write `gelu` for the tanh approximation; later versions mean what they write.
    let activation = match family {
        "gemma" if raw.text_or("hidden_act", "gelu")? == "gelu" => Activation::GeluTanh,
        "gemma" => raw.activation("hidden_act", "")?,
        _ => raw.activation("hidden_activation", "gelu_pytorch_tanh")?,
    };
    DecoderConfig {
        family,
        vocab_size: raw.size_or("vocab_size", 262_208)?,
        hidden_size,
        layers,
        heads,
        kv_heads: raw.size_or("num_key_value_heads", if family == "gemma" { heads } else { 4 })?,
        head_size,
        intermediate_size: raw.size("intermediate_size")?,
        max_positions: raw
            .size_or("max_position_embeddings", if family == "gemma3" { 131_072 } else { 8192 })?,
        norm: NormKind::RmsNorm,
        norm_eps: raw.float_or("rms_norm_eps", 1e-6)?,
        norm_gain_less_one: true,
        branch_norms: matches!(family, "gemma2" | "gemma3"),
        query_key_norms: (family == "gemma3").then_some(QueryKeyNorms::PerHead),
        positions: Positions::Rotary(positions),
        alternate,
        attention_divisor: match family {
            "gemma" => None,
            _ => Some(raw.positive_or("query_pre_attn_scalar", 256.0)?),
        },
        // Gemma 3 has the key and does not obey it.
        attention_softcap: match family {
            "gemma2" | "vaultgemma" => cap("attn_logit_softcapping", attention_cap)?,
            _ => None,
        },
        logit_softcap: match family {
            "gemma" => None,
            _ => cap("final_logit_softcapping", logit_cap)?,
        },
        biases: Biases::of(raw.flag_or("attention_bias", false)?, false),
        activation,
        gated_mlp: true,
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        embedding_size: hidden_size,
        embedding_scale: Some(convert::f32_from(convert::f64_from(hidden_size).sqrt())),
        eos_token_ids: whole.token_ids("eos_token_id")?,
        ..DecoderConfig::default()
    }
    .validate(raw)
}

/// The rotary settings of the blocks without and with a window.
pub(super) fn gemma3_rotary(raw: &RawConfig, head_size: usize) -> Result<(Rotary, Rotary), Error> {
    const KEY: &str = "rope_parameters";
    let of = |kind: &str, defaults| {
        let parameters = raw.get(KEY).and_then(|parameters| parameters.get(kind));
        Rotary::read_from(raw, &format!("{KEY}.{kind}"), parameters, head_size, defaults)
    };
    if raw.get(KEY).is_some() {
        return Ok((of("full_attention", GLOBAL)?, of("sliding_attention", RotaryDefaults::default())?));
    }
    // Before transformers 5; blocks with a window are not scaled.
    let global = Rotary::read(raw, head_size, GLOBAL)?;
    let theta = raw.positive_or("rope_local_base_freq", RotaryDefaults::default().theta)?;
    let local = Rotary { theta, scaling: crate::config::RotaryScaling::None, ..global.clone() };
    Ok((global, local))
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    let layer = move |index| {
        let plain = layer(index, &config);
        let block = llama::module(index);
        if !config.branch_norms {
            let mlp_norm = (config.family == "vaultgemma").then(|| block.name("pre_feedforward_layernorm"));
            return LayerNames { mlp_norm: mlp_norm.or(plain.mlp_norm), ..plain };
        }
        branch_normed(plain, index)
    };
    TensorNames { roots: ROOTS, ..llama::tensors(layer) }
}

/// Where a checkpoint keeps the text part's tensors.
pub(super) const ROOTS: &[&str] = &["model.", "language_model.model.", "model.language_model.", ""];

/// Block `index` with the names of Gemma's norms since its second version.
pub(super) fn branch_normed(plain: LayerNames, index: usize) -> LayerNames {
    let block = llama::module(index);
    let branch_norms = ["post_attention_layernorm", "post_feedforward_layernorm"];
    LayerNames {
        mlp_norm: Some(block.name("pre_feedforward_layernorm")),
        branch_norms: Some(branch_norms.map(|norm| block.name(norm))),
        ..plain
    }
}
