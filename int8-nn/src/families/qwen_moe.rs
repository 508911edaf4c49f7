//! Qwen1.5-MoE, Qwen2-MoE and Qwen3-MoE (Qwen Team, 2024, 2025): a mixture of many small experts in some blocks or all; before
//! Qwen3 with a shared expert.

use serde_json::Value;

use super::llama::{self, layer};
use super::{ExpertNames, Family, LayerNames, MlpNames, Module, TensorNames};
use crate::Error;
use crate::config::{
    Biases, BlockSet, DecoderConfig, ExpertsConfig, QueryKeyNorms, RawConfig, RotaryDefaults,
};

pub(crate) const FAMILY: Family = Family { model_types: &["qwen2_moe", "qwen3_moe"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let third = raw.text_or("model_type", "")? == "qwen3_moe";
    let base = llama::base(raw, RotaryDefaults::default())?;
    let count = if raw.get("num_experts").is_some() { "num_experts" } else { "num_local_experts" };
    let experts = ExpertsConfig {
        count: raw.size(count)?,
        chosen: raw.size("num_experts_per_tok")?,
        normalized: raw.flag_or("norm_topk_prob", false)?,
        intermediate_size: raw.size("moe_intermediate_size")?,
        shared_intermediate_size: match third {
            true => None,
            false => Some(raw.size("shared_expert_intermediate_size")?),
        },
        shared_gate: true,
        ..sparse_blocks(raw)?
    };
    let qkv = if third {
        base.biases
    } else {
        Biases { qkv: raw.flag_or("qkv_bias", true)?, ..Biases::blocks(false) }
    };
    let windows = windows(raw, base.layers, third)?;
    DecoderConfig {
        windows,
        biases: qkv,
        family: if third { "qwen3_moe" } else { "qwen2_moe" },
        query_key_norms: third.then_some(QueryKeyNorms::PerHead),
        experts: Some(experts),
        ..base
    }
    .validate(raw)
}

/// The blocks that have experts.
pub(super) fn sparse_blocks(raw: &RawConfig) -> Result<ExpertsConfig, Error> {
    Ok(ExpertsConfig {
        period: raw.size_or("decoder_sparse_step", 1)?,
        dense_blocks: dense_blocks(raw)?,
        ..ExpertsConfig::default()
    })
}

/// Qwen3-MoE: all blocks. Before: those that `layer_types` names, or else each second one before `max_window_layers`.
fn windows(raw: &RawConfig, layers: usize, third: bool) -> Result<Option<(BlockSet, usize)>, Error> {
    if !raw.flag_or("use_sliding_window", false)? || raw.is_null("sliding_window") {
        let named = raw.sliding_blocks(layers, BlockSet::Marked(Vec::new()))?;
        // transformers gives these blocks a window of 0 tokens.
        if !third && (0..layers).any(|layer| named.contains(layer)) {
            return Err(
                raw.problem("layer_types", "has sliding_attention, but `use_sliding_window` sets no window")
            );
        }
        return Ok(None);
    }
    let blocks = if third {
        BlockSet::From { first: 0 }
    } else {
        let end = raw.index_or("max_window_layers", 28)?;
        let marks = (0..layers).map(|layer| layer.is_multiple_of(2) && layer < end).collect();
        raw.sliding_blocks(layers, BlockSet::Marked(marks))?
    };
    Ok(Some((blocks, raw.size_or("sliding_window", 4096)?)))
}

pub(super) fn dense_blocks(raw: &RawConfig) -> Result<Vec<usize>, Error> {
    const KEY: &str = "mlp_only_layers";
    let Some(value) = raw.get(KEY) else { return Ok(Vec::new()) };
    let index = |value: &Value| value.as_u64().and_then(|index| usize::try_from(index).ok());
    value
        .as_array()
        .and_then(|list| list.iter().map(index).collect())
        .ok_or_else(|| raw.problem(KEY, format!("is {value}; expected a list of indices of layers")))
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| {
        let plain = layer(index, &config);
        match &config.experts {
            Some(experts) if experts.in_block(index) => LayerNames { mlp: mlp(index, experts), ..plain },
            _ => plain,
        }
    })
}

/// The experts of block `index`.
pub(super) fn mlp(index: usize, experts: &ExpertsConfig) -> MlpNames {
    let (count, mlp) = (experts.count, Module::new(llama::module(index).name("mlp")));
    let shared = experts.shared_intermediate_size.map(|_| mlp.name("shared_expert_gate"));
    MlpNames::Experts(vec![ExpertNames {
        router: std::iter::once(mlp.name("gate")).chain(shared).collect(),
        correction: None,
        fused: Some(["experts.gate_up_proj", "experts.down_proj"].map(|name| mlp.name(name))),
        expert: Box::new(move |expert| {
            let expert = Module::new(match expert == count {
                true => mlp.name("shared_expert"),
                false => mlp.name(&format!("experts.{expert}")),
            });
            (expert.parts(["gate_proj", "up_proj"]), expert.part("down_proj"))
        }),
    }])
}
