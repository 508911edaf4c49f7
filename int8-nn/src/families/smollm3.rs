//! SmolLM3 (Hugging Face, 2025): LLaMA without rotary positions in every fourth block.

use serde_json::Value;

use super::llama::{self, layer};
use super::{Family, TensorNames};
use crate::Error;
use crate::config::{
    AlternateAttention, Biases, BlockSet, DecoderConfig, Positions, RawConfig, RotaryDefaults,
};

pub(crate) const FAMILY: Family = Family { model_types: &["smollm3"], config, names };

const ROTARY: RotaryDefaults = RotaryDefaults { theta: 2_000_000.0, share: 1.0, partial: false };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let base = llama::base(raw, ROTARY)?;
    let rotated = rotated_blocks(raw, base.layers)?;
    // Without `layer_types`, the blocks without positions have the window.
    let windows = match raw.get("sliding_window") {
        Some(_) if raw.flag_or("use_sliding_window", false)? => {
            let others = (0..base.layers).map(|layer| !rotated.contains(layer)).collect();
            let blocks = raw.sliding_blocks(base.layers, BlockSet::Marked(others))?;
            Some((blocks, raw.size("sliding_window")?))
        }
        _ => None,
    };
    let alternate =
        AlternateAttention { blocks: rotated, positions: base.positions.clone(), sliding_window: None };
    DecoderConfig {
        family: "smollm3",
        positions: Positions::None,
        alternate: Some(alternate),
        windows,
        biases: Biases::of(raw.flag_or("attention_bias", false)?, raw.flag_or("mlp_bias", false)?),
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        ..base
    }
    .validate(raw)
}

/// `no_rope_layers` has a 1 for each block *with* rotary positions.
fn rotated_blocks(raw: &RawConfig, layers: usize) -> Result<BlockSet, Error> {
    const KEY: &str = "no_rope_layers";
    let Some(value) = raw.get(KEY) else {
        return Ok(BlockSet::AllButEach { period: raw.size_or("no_rope_layer_interval", 4)? });
    };
    let marks = value.as_array().filter(|marks| marks.len() == layers);
    let marks =
        marks.ok_or_else(|| raw.problem(KEY, format!("is no list of {layers} numbers, one a layer")))?;
    let mark = |mark: &Value| match mark.as_u64() {
        Some(0) => Ok(false),
        Some(1) => Ok(true),
        _ => Err(raw.problem(KEY, format!("has {mark}; expected 0 or 1"))),
    };
    Ok(BlockSet::Marked(marks.iter().map(mark).collect::<Result<_, Error>>()?))
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| layer(index, &config))
}
