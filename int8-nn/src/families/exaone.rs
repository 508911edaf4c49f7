//! EXAONE (LG AI Research, 2024, 2025): the third generation is LLaMA under other names; the fourth normalises queries, keys and
//! outputs of branches, and rotates only in blocks with a window.

use serde_json::json;

use super::llama::{self, layer};
use super::{Family, LayerNames, Module, TensorNames};
use crate::Error;
use crate::config::{
    AlternateAttention, Biases, BlockSet, DecoderConfig, Positions, QueryKeyNorms, RawConfig, RotaryDefaults,
};

pub(crate) const FAMILY: Family = Family { model_types: &["exaone", "exaone4"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    if raw.text_or("model_type", "")? == "exaone" {
        return third(raw);
    }
    let raw = &raw.with_defaults(&[
        ("num_key_value_heads", json!(32)),
        ("rms_norm_eps", json!(1e-5)),
        ("sliding_window", json!(4096)),
    ]);
    let config = DecoderConfig {
        family: "exaone4",
        branch_norms: true,
        query_key_norms: Some(QueryKeyNorms::PerHead),
        biases: Biases::blocks(false),
        ..llama::base(raw, RotaryDefaults::default())?
    };
    rotated_in_windows(raw, config)?.validate(raw)
}

fn third(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw
        .renamed("num_layers", "num_hidden_layers")
        .renamed("layer_norm_epsilon", "rms_norm_eps")
        .renamed("activation_function", "hidden_act")
        .with_defaults(&[
            ("num_key_value_heads", json!(8)),
            ("rms_norm_eps", json!(1e-5)),
            ("max_position_embeddings", json!(4096)),
        ]);
    let base = llama::base(raw, RotaryDefaults { theta: 500_000.0, ..RotaryDefaults::default() })?;
    let biases = Biases::of(raw.flag_or("attention_bias", false)?, raw.flag_or("mlp_bias", false)?);
    DecoderConfig { family: "exaone", biases, ..base }.validate(raw)
}

/// With a window in all but each fourth block, and no positions in these; without `sliding_window`, all blocks are rotated.
pub(super) fn rotated_in_windows(raw: &RawConfig, config: DecoderConfig) -> Result<DecoderConfig, Error> {
    if raw.get("sliding_window").is_none() {
        return Ok(config);
    }
    let default = match raw.get("layer_types") {
        Some(_) => BlockSet::Marked(Vec::new()),
        None => BlockSet::AllButEach { period: raw.size_or("sliding_window_pattern", 4)? },
    };
    let alternate = AlternateAttention {
        blocks: raw.sliding_blocks(config.layers, default)?,
        positions: config.positions,
        sliding_window: Some(raw.size("sliding_window")?),
    };
    Ok(DecoderConfig { positions: Positions::None, alternate: Some(alternate), ..config })
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    if config.family == "exaone" {
        let layer = |index| {
            let block = Module::new(format!("h.{index}"));
            let attention = Module::new(block.name("attn.attention"));
            LayerNames::new(
                attention.parts(["q_proj", "k_proj", "v_proj"]),
                attention.part("out_proj"),
                block.mlp(["mlp.c_fc_0", "mlp.c_fc_1"], "mlp.c_proj"),
            )
            .norms(block.name("ln_1"), block.name("ln_2"))
        };
        return TensorNames::new(&["transformer.", ""], "wte", "ln_f", layer);
    }
    llama::tensors(move |index| {
        let block = llama::module(index);
        let norms = ["post_attention_layernorm", "post_feedforward_layernorm"];
        LayerNames {
            attention_norm: None,
            mlp_norm: None,
            branch_norms: Some(norms.map(|norm| block.name(norm))),
            ..layer(index, &config)
        }
    })
}
