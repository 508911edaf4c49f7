//! MiniMax-M3 (2026), its text part: gains stored less one, norms on queries and keys, sigmoid scores, and gates with limits in experts
//! and dense blocks alike. Its sparse attention to blocks of keys is refused by name.

use serde_json::json;

use super::llama::{self, layer};
use super::{ExpertNames, Family, LayerNames, MlpNames, Module, TensorNames};
use crate::Error;
use crate::config::{
    Biases, ClampedGate, DecoderConfig, ExpertsConfig, QueryKeyNorms, RawConfig, RotaryDefaults, Scores,
};
use crate::weights::{Part, Rows};

pub(crate) const FAMILY: Family = Family { model_types: &["minimax_m3_vl_text"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    const TYPES: &str = "layer_types";
    let raw = &raw.renamed("num_experts", "num_local_experts").with_defaults(&[
        ("head_dim", json!(128)),
        ("num_key_value_heads", json!(4)),
        ("max_position_embeddings", json!(524_288)),
    ]);
    for (key, sparse) in
        [(TYPES, true), ("sparse_attention_config", raw.get(TYPES).is_none()), ("moe_layer_freq", true)]
    {
        let full = raw.get(key).and_then(serde_json::Value::as_array);
        let full = key == TYPES
            && full.is_some_and(|kinds| kinds.iter().all(|kind| *kind == json!("full_attention")));
        if sparse && raw.get(key).is_some() && !full {
            return Err(raw.problem(
                key,
                "is set; of this family's attention only full_attention in all layers, said in `layer_types`, is implemented",
            ));
        }
    }
    let rotary = RotaryDefaults { theta: 5_000_000.0, share: 1.0, partial: true };
    let base = llama::base(&raw.without("hidden_act"), rotary)?;
    let dense = raw.size_or("dense_intermediate_size", 12288)?;
    let experts = ExpertsConfig {
        count: raw.size_or("num_local_experts", 128)?,
        chosen: raw.size_or("num_experts_per_tok", 4)?,
        normalized: true,
        scores: Scores::Sigmoid,
        correction: true,
        scale: raw.float_or("routed_scaling_factor", 2.0)?,
        intermediate_size: base.intermediate_size,
        shared_intermediate_size: Some(raw.size_or("shared_intermediate_size", 3072)?),
        dense_blocks: super::moe::dense_blocks(raw, base.layers, 0)?,
        ..ExpertsConfig::default()
    };
    DecoderConfig {
        family: "minimax_m3_vl_text",
        norm_gain_less_one: true,
        query_key_norms: Some(QueryKeyNorms::PerHead),
        biases: Biases::blocks(false),
        intermediate_size: dense,
        clamped_gate: Some(ClampedGate {
            alpha: raw.float_or("swiglu_alpha", 1.702)?,
            limit: raw.float_or("swiglu_limit", 7.0)?,
        }),
        experts: Some(experts),
        ..base
    }
    .validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    let layer = move |index| {
        let block = llama::module(index);
        let mlp = match &config.experts {
            Some(experts) if experts.in_block(index) => expert_names(index, experts),
            _ => MlpNames::Dense {
                up: halves(&block.name("mlp.gate_up_proj"), config.intermediate_size),
                down: block.part("mlp.down_proj"),
            },
        };
        LayerNames { mlp, ..layer(index, &config) }
    };
    TensorNames {
        roots: &["model.", "model.language_model.", "language_model.model.", ""],
        ..llama::tensors(layer)
    }
}

/// Gate and expansion, which are stored one after the other.
fn halves(name: &str, width: usize) -> Vec<Part> {
    let half = |rows: std::ops::Range<usize>| {
        Part::new(name).rows(Rows::Gather { rows: rows.collect(), of: 2 * width })
    };
    vec![half(0..width), half(width..2 * width)]
}

fn expert_names(index: usize, experts: &ExpertsConfig) -> MlpNames {
    let mlp = Module::new(llama::module(index).name("mlp"));
    let (count, width) = (experts.count, experts.shared_intermediate_size.unwrap_or_default());
    MlpNames::Experts(vec![ExpertNames {
        router: vec![mlp.name("gate")],
        correction: Some(mlp.name("gate.e_score_correction_bias")),
        fused: Some(["experts.gate_up_proj", "experts.down_proj"].map(|name| mlp.name(name))),
        expert: Box::new(move |expert| {
            if expert == count {
                let up = halves(&mlp.name("shared_experts.gate_up_proj"), width);
                return (up, mlp.part("shared_experts.down_proj"));
            }
            let expert = Module::new(mlp.name(&format!("experts.{expert}")));
            (expert.parts(["gate_proj", "up_proj"]), expert.part("down_proj"))
        }),
    }])
}
