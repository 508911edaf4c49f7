//! DiffLlama (2025): LLaMA with differential attention (Ye et al., 2024).

use serde_json::json;

use super::llama::{self, layer};
use super::{Family, LayerNames, TensorNames};
use crate::config::{DecoderConfig, RawConfig, RotaryDefaults, ValueHeads};
use crate::{Error, convert};

pub(crate) const FAMILY: Family = Family { model_types: &["diffllama"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[("rms_norm_eps", json!(1e-5))]);
    let base = llama::base(raw, RotaryDefaults::default())?;
    if !base.kv_heads.is_multiple_of(2) {
        return Err(
            raw.problem("num_key_value_heads", format!("is {}; expected an even number", base.kv_heads))
        );
    }
    DecoderConfig {
        family: "diffllama",
        // A head of the cache holds two of the values.
        head_size: 2 * base.head_size,
        attention_divisor: Some(convert::f64_from(base.head_size)),
        values: Some(ValueHeads::Differential),
        ..base
    }
    .validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| {
        let attention = super::Module::new(llama::module(index).name("self_attn"));
        let lambdas = [["lambda_q1", "lambda_q2"], ["lambda_k1", "lambda_k2"]];
        LayerNames {
            lambdas: Some(lambdas.map(|pair| pair.map(|name| attention.name(name)))),
            ..layer(index, &config)
        }
    })
}
