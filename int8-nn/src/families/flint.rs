//! Flint (2026): Qwen3-MoE with sigmoid scores, attention sinks in all blocks, and rotary positions in blocks with a window
//! alone.

use serde_json::json;

use super::llama::{self, layer};
use super::{Family, LayerNames, TensorNames, moe};
use crate::Error;
use crate::config::{
    AlternateAttention, BlockSet, DecoderConfig, ExpertsConfig, Positions, QueryKeyNorms, RawConfig,
    RotaryDefaults, Scores,
};

pub(crate) const FAMILY: Family = Family { model_types: &["flint"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("head_dim", json!(128)),
        ("num_key_value_heads", json!(4)),
        ("sliding_window", json!(513)),
        ("mlp_only_layers", json!([0, 1])),
        ("max_position_embeddings", json!(262_144)),
    ]);
    let base = llama::base(raw, RotaryDefaults::default())?;
    let layers = base.layers;
    let full = |layer: usize| layer < 2 || layer % 4 == 1 || layer + 1 == layers;
    let windowed = BlockSet::Marked((0..layers).map(|layer| !full(layer)).collect());
    let experts = ExpertsConfig {
        count: moe::count(raw, 256)?,
        chosen: raw.size_or("num_experts_per_tok", 6)?,
        normalized: raw.flag_or("norm_topk_prob", true)?,
        scores: Scores::SigmoidOfLogits,
        intermediate_size: raw.size_or("moe_intermediate_size", 512)?,
        shared_intermediate_size: Some(raw.size_or("shared_expert_intermediate_size", 1024)?),
        period: raw.size_or("decoder_sparse_step", 1)?,
        dense_blocks: super::qwen_moe::dense_blocks(raw)?,
        ..ExpertsConfig::default()
    };
    let alternate = AlternateAttention {
        blocks: raw.sliding_blocks(layers, windowed)?,
        positions: base.positions,
        sliding_window: match raw.get("sliding_window") {
            Some(_) => Some(raw.size("sliding_window")?),
            None => return Err(raw.problem("sliding_window", "is null; blocks of this family have a window")),
        },
    };
    DecoderConfig {
        family: "flint",
        query_key_norms: Some(QueryKeyNorms::PerHead),
        positions: Positions::None,
        alternate: Some(alternate),
        attention_sinks: true,
        experts: Some(experts),
        ..base
    }
    .validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| {
        let plain = layer(index, &config);
        LayerNames {
            sinks: Some(llama::module(index).name("self_attn.softmax_offset")),
            mlp: match &config.experts {
                Some(experts) if experts.in_block(index) => {
                    moe::Names { shared: "shared_expert", ..moe::Names::default() }.of(index, experts)
                }
                _ => plain.mlp,
            },
            ..plain
        }
    })
}
