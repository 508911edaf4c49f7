//! Phi-3.5-MoE (Abdin et al., 2024): LLaMA with LayerNorms, biases, and sparse mixing of two experts.

use serde_json::json;

use super::llama::{self, layer};
use super::{Family, LayerNames, TensorNames, moe};
use crate::Error;
use crate::config::{
    Biases, BlockSet, DecoderConfig, ExpertsConfig, NormKind, RawConfig, RotaryDefaults, Scores,
};

pub(crate) const FAMILY: Family = Family { model_types: &["phimoe"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("num_key_value_heads", json!(8)),
        ("rms_norm_eps", json!(1e-5)),
        ("max_position_embeddings", json!(131_072)),
    ]);
    let base = llama::base(raw, RotaryDefaults { theta: 1_000_000.0, ..RotaryDefaults::default() })?;
    for key in ["rope_parameters", "rope_scaling"] {
        // Their cosines have a factor that depends on the length of the text.
        let scaled = raw.get(key).and_then(|parameters| parameters.get("short_mscale"));
        if scaled.is_some() {
            return Err(raw.problem(key, "has `short_mscale`, which is not implemented"));
        }
    }
    let experts = ExpertsConfig {
        count: raw.size_or("num_local_experts", 16)?,
        chosen: raw.size_or("num_experts_per_tok", 2)?,
        scores: Scores::SparseMixer { jitter: raw.float_or("router_jitter_noise", 0.01)? },
        intermediate_size: base.intermediate_size,
        ..ExpertsConfig::default()
    };
    let attention = raw.flag_or("attention_bias", false)?;
    let config = DecoderConfig {
        family: "phimoe",
        norm: NormKind::LayerNorm,
        biases: Biases { head: raw.flag_or("lm_head_bias", false)?, ..Biases::of(attention, false) },
        experts: Some(experts),
        ..base
    };
    let windows = match raw.get("sliding_window") {
        Some(_) => Some((BlockSet::From { first: 0 }, raw.size("sliding_window")?)),
        None => None,
    };
    DecoderConfig { windows, ..config }.validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| {
        let names = moe::Names {
            module: "block_sparse_moe",
            projections: ["w1", "w3", "w2"],
            ..moe::Names::default()
        };
        let plain = layer(index, &config);
        match &config.experts {
            Some(experts) => LayerNames { mlp: names.of(index, experts), ..plain },
            None => plain,
        }
    })
}
