//! Falcon-H1 (Technology Innovation Institute, 2025): attention and Mamba-2 side by side in each block, with factors in all
//! branches.

use serde_json::{Value, json};

use super::hybrid;
use super::{Family, LayerNames, Module, RecurrentNames, StateSpaceNames, TensorNames, llama};
use crate::config::{
    Biases, BranchFactors, DecoderConfig, GatedNorm, Mixer, RawConfig, RecurrentMixer, RotaryDefaults, Scan,
    StateSpace, listed_layers,
};
use crate::{Error, convert};

pub(crate) const FAMILY: Family = Family { model_types: &["falcon_h1"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("vocab_size", json!(128_000)),
        ("hidden_size", json!(4096)),
        ("intermediate_size", json!(14336)),
        ("num_hidden_layers", json!(32)),
        ("num_attention_heads", json!(32)),
        ("num_key_value_heads", json!(8)),
        ("rms_norm_eps", json!(1e-5)),
        ("max_position_embeddings", json!(8192)),
        ("eos_token_id", json!(2)),
        ("mamba_d_ssm", json!(1024)),
    ]);
    listed_layers(raw, "num_hidden_layers")?;
    let base = llama::base(raw, RotaryDefaults::default())?;
    let factor = |key: &str| raw.float_or(key, 1.0);
    let [gate, mlp] = factors(raw, "mlp_multipliers")?;
    let key = raw.positive_or("key_multiplier", 1.0)?;
    let (attention, mlp_bias) = (raw.flag_or("attention_bias", false)?, raw.flag_or("mlp_bias", false)?);
    let changed = |factor: f32| Some(factor).filter(|factor| *factor != 1.0);
    DecoderConfig {
        family: "falcon_h1",
        biases: Biases::of(attention, mlp_bias),
        embedding_scale: changed(factor("embedding_multiplier")?),
        logit_scale: changed(factor("lm_head_multiplier")?),
        // A factor of the keys is one of the scores.
        attention_divisor: Some(convert::f64_from(base.head_size) / (key * key)),
        branch_factors: Some(BranchFactors {
            attention_input: factor("attention_in_multiplier")?,
            attention: factor("attention_out_multiplier")?,
            recurrent_input: factor("ssm_in_multiplier")?,
            recurrent: factor("ssm_out_multiplier")?,
            gate,
            mlp,
        }),
        mixers: Some(vec![Mixer::AttentionAndRecurrent; base.layers]),
        recurrent: Some(RecurrentMixer::StateSpace(mixer(raw)?)),
        ..base
    }
    .validate(raw)
}

fn mixer(raw: &RawConfig) -> Result<StateSpace, Error> {
    let base = hybrid::heads(raw)?;
    // Null: the width of the other families.
    let channels = match raw.get("mamba_d_ssm") {
        None => base.channels,
        Some(_) => raw.size("mamba_d_ssm")?,
    };
    let scan = match base.scan {
        Scan::Heads { heads, groups, step_limits, norm } => Scan::Heads {
            heads,
            groups,
            step_limits,
            norm: match norm {
                Some(norm) if raw.flag_or("mamba_rms_norm", false)? => {
                    Some(GatedNorm { before_gate: raw.flag_or("mamba_norm_before_gate", true)?, ..norm })
                }
                _ => None,
            },
        },
        scan @ Scan::Selective { .. } => scan,
    };
    let space = StateSpace {
        channels,
        output_bias: raw.flag_or("projectors_bias", false)?,
        scan,
        multipliers: Some(factors(raw, "ssm_multipliers")?),
        ..base
    };
    hybrid::check_head_size(raw, "mamba_d_head", &space)?;
    Ok(space)
}

/// The list of factors under `key`, 1 without it.
fn factors<const N: usize>(raw: &RawConfig, key: &str) -> Result<[f32; N], Error> {
    let Some(value) = raw.get(key) else { return Ok([1.0; N]) };
    let wrong = || raw.problem(key, format!("is {value}; expected {N} numbers"));
    let list = value.as_array().filter(|list| list.len() == N).ok_or_else(wrong)?;
    let mut factors = [1.0; N];
    for (factor, value) in factors.iter_mut().zip(list) {
        *factor = Value::as_f64(value).map(convert::f32_from).ok_or_else(wrong)?;
    }
    Ok(factors)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    let tensors = llama::tensors(move |index| {
        let block = llama::module(index);
        let mixer = StateSpaceNames::mamba2(&Module::new(block.name("mamba")));
        LayerNames {
            recurrent: Some(RecurrentNames::StateSpace(Box::new(mixer))),
            mlp: block.mlp(["feed_forward.gate_proj", "feed_forward.up_proj"], "feed_forward.down_proj"),
            ..llama::layer(index, &config)
        }
        .norms(block.name("input_layernorm"), block.name("pre_ff_layernorm"))
    });
    TensorNames { final_norm: Some("final_layernorm"), ..tensors }
}
