//! Mamba (Gu, Dao, 2023), Falcon Mamba (Technology Innovation Institute, 2024) and Mamba-2 (Dao, Gu, 2024): blocks of one
//! state-space mixer.

use serde_json::json;

use super::{Family, LayerNames, Module, RecurrentNames, StateSpaceNames, TensorNames};
use crate::Error;
use crate::config::{
    BlockSet, DecoderConfig, GatedNorm, Mixer, NormKind, ParameterNorms, RawConfig, RecurrentMixer, Scan,
    StateSpace, listed_layers,
};

pub(crate) const FAMILY: Family = Family { model_types: &["mamba", "falcon_mamba", "mamba2"], config, names };

const LAYERS: &str = "num_hidden_layers";

/// A state has no positions: the limit only bounds the sizes of sessions.
const MOST_POSITIONS: usize = 1 << 20;

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    match raw.text_or("model_type", "")? {
        "mamba2" => mamba2(raw),
        "mamba" => mamba(raw, "mamba"),
        _ => mamba(raw, "falcon_mamba"),
    }
}

fn mamba(raw: &RawConfig, family: &'static str) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("vocab_size", json!(50280)),
        ("hidden_size", json!(768)),
        ("num_hidden_layers", json!(32)),
        ("eos_token_id", json!(0)),
        ("tie_word_embeddings", json!(true)),
    ]);
    let hidden = raw.size("hidden_size")?;
    let norms = ParameterNorms { eps: raw.float_or("mixer_rms_eps", 1e-6)?, gains: false };
    let space = StateSpace {
        channels: raw.size_or("intermediate_size", raw.size_or("expand", 2)? * hidden)?,
        dimensions: raw.size_or("state_size", 16)?,
        scan: Scan::Selective {
            rank: rank(raw, "time_step_rank", hidden)?,
            norms: (family == "falcon_mamba").then_some(norms),
            heads: None,
        },
        ..mixer(raw)?
    };
    blocks(raw, family, space)
}

fn mamba2(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("vocab_size", json!(32768)),
        ("hidden_size", json!(4096)),
        ("num_hidden_layers", json!(64)),
        ("eos_token_id", json!(2)),
        ("tie_word_embeddings", json!(false)),
    ]);
    let groups = raw.size_or("n_groups", 8)?;
    let (heads, head_size) = (raw.size_or("num_heads", 128)?, raw.size_or("head_dim", 64)?);
    let channels = raw.size_or("expand", 2)? * raw.size("hidden_size")?;
    if heads * head_size != channels {
        return Err(raw.problem(
            "num_heads",
            format!("is {heads}: with heads of {head_size} channels they are not the {channels} channels of the mixer"),
        ));
    }
    let eps = raw.float_or("layer_norm_epsilon", 1e-5)?;
    let space = StateSpace {
        channels,
        dimensions: raw.size_or("state_size", 128)?,
        scan: Scan::Heads {
            heads,
            groups,
            step_limits: step_limits(raw)?,
            norm: Some(GatedNorm { groups, eps, before_gate: false }),
        },
        ..mixer(raw)?
    };
    blocks(raw, "mamba2", space)
}

/// What both have, around sizes and recurrence that the caller fills in.
fn mixer(raw: &RawConfig) -> Result<StateSpace, Error> {
    let biased = raw.flag_or("use_bias", false)?;
    Ok(StateSpace {
        channels: 0,
        dimensions: 0,
        kernel: raw.size_or("conv_kernel", 4)?,
        convolution_bias: raw.flag_or("use_conv_bias", true)?,
        activation: raw.activation("hidden_act", "silu")?,
        input_bias: biased,
        output_bias: biased,
        scan: Scan::Selective { rank: 0, norms: None, heads: None },
        multipliers: None,
    })
}

fn blocks(raw: &RawConfig, family: &'static str, space: StateSpace) -> Result<DecoderConfig, Error> {
    let (hidden_size, layers) = (raw.size("hidden_size")?, listed_layers(raw, LAYERS)?);
    DecoderConfig {
        family,
        vocab_size: raw.size("vocab_size")?,
        hidden_size,
        layers,
        embedding_size: hidden_size,
        max_positions: MOST_POSITIONS,
        norm: NormKind::RmsNorm,
        norm_eps: raw.float_or("layer_norm_epsilon", 1e-5)?,
        tied_embeddings: raw.flag_or("tie_word_embeddings", false)?,
        eos_token_ids: raw.token_ids("eos_token_id")?,
        mixers: Some(vec![Mixer::Recurrent; layers]),
        recurrent: Some(RecurrentMixer::StateSpace(space)),
        mlps: Some(BlockSet::Marked(vec![false])),
        ..DecoderConfig::default()
    }
    .validate(raw)
}

/// The rank of Δ under `key`: a size, or "auto" for `⌈hidden/16⌉`.
pub(super) fn rank(raw: &RawConfig, key: &str, hidden: usize) -> Result<usize, Error> {
    match raw.get(key) {
        None => Ok(hidden.div_ceil(16)),
        Some(value) if value == "auto" => Ok(hidden.div_ceil(16)),
        Some(_) => raw.size(key),
    }
}

/// `time_step_limit`: two numbers, of which the second may be infinite.
pub(super) fn step_limits(raw: &RawConfig) -> Result<[f32; 2], Error> {
    const KEY: &str = "time_step_limit";
    let Some(value) = raw.get(KEY) else { return Ok([0.0, f32::INFINITY]) };
    let wrong = || raw.problem(KEY, format!("is {value}; expected two numbers"));
    let limit = |value: &serde_json::Value| {
        let named = value.get("__float__").unwrap_or(value).as_str();
        match named {
            Some("Infinity" | "inf") => Some(f32::INFINITY),
            _ => value.as_f64().map(crate::convert::f32_from),
        }
    };
    match value.as_array().map(Vec::as_slice) {
        Some([least, most]) => Ok([limit(least).ok_or_else(wrong)?, limit(most).ok_or_else(wrong)?]),
        _ => Err(wrong()),
    }
}

fn names(config: &DecoderConfig) -> TensorNames {
    let is_mamba2 = config.family == "mamba2";
    TensorNames::new(&["backbone.", ""], "embeddings", "norm_f", move |index| {
        let block = Module::new(format!("layers.{index}"));
        let mixer = Module::new(block.name("mixer"));
        let names = if is_mamba2 { StateSpaceNames::mamba2(&mixer) } else { StateSpaceNames::mamba(&mixer) };
        LayerNames::recurrent(block.name("norm"), RecurrentNames::StateSpace(Box::new(names)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Python's `Infinity`, transformers' name for it, and numbers; all else is refused.
    #[test]
    fn limits_of_steps_may_be_infinite() {
        let read = |limits: serde_json::Value| {
            let file = json!({"time_step_limit": limits});
            step_limits(&RawConfig::from_json("config.json".to_owned(), file).expect("an object"))
        };
        for infinite in [json!("Infinity"), json!({"__float__": "Infinity"})] {
            assert_eq!(read(json!([0.5, infinite])).expect("limits"), [0.5, f32::INFINITY]);
        }
        assert_eq!(read(json!([0, 2.0])).expect("limits"), [0.0, 2.0]);
        assert_eq!(read(json!(null)).expect("limits"), [0.0, f32::INFINITY]);
        for wrong in [json!([1.0]), json!([0.0, "much"]), json!(3)] {
            assert!(read(wrong).is_err());
        }
    }

    /// The mixer of a file without `time_step_rank`, and sizes that contradict each other.
    #[test]
    fn sizes_follow_from_each_other() {
        let read = |file: serde_json::Value| {
            config(&RawConfig::from_json("config.json".to_owned(), file).expect("an object"))
                .map_err(|error| error.to_string())
        };
        let found = read(json!({"model_type": "mamba", "hidden_size": 40, "time_step_rank": "auto"}));
        let Some(RecurrentMixer::StateSpace(space)) = found.expect("a configuration").recurrent else {
            panic!("Mamba")
        };
        assert_eq!((space.channels, space.scan), (80, Scan::Selective { rank: 3, norms: None, heads: None }));
        for (file, key) in [
            (json!({"model_type": "mamba2", "hidden_size": 64, "num_heads": 3, "head_dim": 16}), "num_heads"),
            (
                json!({"model_type": "mamba2", "hidden_size": 64, "num_heads": 8, "head_dim": 16, "n_groups": 3}),
                "n_groups",
            ),
            (json!({"model_type": "mamba", "num_hidden_layers": 1_000_000_000}), "num_hidden_layers"),
            (
                json!({"model_type": "mamba", "intermediate_size": 2_147_483_647, "hidden_size": 0}),
                "hidden_size",
            ),
        ] {
            let error = read(file).expect_err("refused");
            assert!(error.contains(key), "{error}");
        }
    }
}
