//! Hunyuan 1 (Tencent, 2025), dense and with a mixture of experts: LLaMA with norms on rotated queries and keys.

use serde_json::{Value, json};

use super::llama::{self, layer};
use super::{Family, LayerNames, TensorNames, moe};
use crate::Error;
use crate::config::{
    Biases, DecoderConfig, ExpertsConfig, Positions, QueryKeyNorms, RawConfig, RotaryDefaults,
};

pub(crate) const FAMILY: Family =
    Family { model_types: &["hunyuan_v1_dense", "hunyuan_v1_moe"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[("rms_norm_eps", json!(1e-5))]);
    let base = llama::base(raw, RotaryDefaults::default())?;
    let positions = match base.positions {
        Positions::Rotary(rotary) => Positions::Rotary(rotary.with_alpha(raw)?),
        other => other,
    };
    let attention = raw.flag_or("attention_bias", false)?;
    let experts = match raw.text_or("model_type", "")? {
        "hunyuan_v1_moe" => Some(ExpertsConfig {
            count: raw.size_or("num_experts", 1)?,
            chosen: chosen(raw)?,
            normalized: true,
            intermediate_size: base.intermediate_size,
            shared_intermediate_size: Some(base.intermediate_size),
            ..ExpertsConfig::default()
        }),
        _ => None,
    };
    DecoderConfig {
        family: "hunyuan",
        positions,
        query_key_norms: Some(QueryKeyNorms::PerHead),
        norms_after_rotation: true,
        biases: Biases::of(attention, false),
        experts,
        ..base
    }
    .validate(raw)
}

/// `moe_topk`: one number, or the same one for each layer.
fn chosen(raw: &RawConfig) -> Result<usize, Error> {
    const KEY: &str = "moe_topk";
    match raw.get(KEY) {
        Some(Value::Array(list)) => {
            let first =
                list.first().and_then(Value::as_u64).filter(|_| list.iter().all(|each| *each == list[0]));
            first.and_then(|first| usize::try_from(first).ok()).filter(|first| *first > 0).ok_or_else(|| {
                raw.problem(KEY, "is a list of different numbers, one a layer, which is not implemented")
            })
        }
        _ => raw.size_or(KEY, 1),
    }
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| {
        let block = llama::module(index);
        let plain = layer(index, &config);
        let norms = ["self_attn.query_layernorm", "self_attn.key_layernorm"];
        let names = moe::Names { router: "gate.wg", shared: "shared_mlp", ..moe::Names::default() };
        LayerNames {
            query_key_norms: Some(norms.map(|norm| block.name(norm))),
            mlp: match &config.experts {
                Some(experts) => names.of(index, experts),
                None => plain.mlp,
            },
            ..plain
        }
    })
}
