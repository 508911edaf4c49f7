//! Llama 4 (Meta, 2025), text only: experts beside a shared one, whose weights multiply their inputs; interleaved rotary pairs and
//! chunks of attention in three of four blocks, and no positions in the fourth, where queries grow with their position.

use serde_json::{Value, json};

use super::interleaved::rotated;
use super::{ExpertNames, Family, LayerNames, MlpNames, Module, TensorNames, llama};
use crate::Error;
use crate::config::{
    AlternateAttention, BlockSet, DecoderConfig, ExpertsConfig, Positions, QueryGrowth, QueryKeyNorms,
    RawConfig, RotaryDefaults, Scores,
};
use crate::weights::Part;

pub(crate) const FAMILY: Family = Family { model_types: &["llama4_text", "llama4"], config, names };

fn config(whole: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &whole.section("text_config")?.with_defaults(&[
        ("head_dim", json!(128)),
        ("num_key_value_heads", json!(8)),
        ("rms_norm_eps", json!(1e-5)),
        ("max_position_embeddings", json!(131_072)),
        ("attention_chunk_size", json!(8192)),
    ]);
    let base = llama::base(raw, RotaryDefaults { theta: 500_000.0, ..RotaryDefaults::default() })?;
    let layers = base.layers;
    let turned = rotated_blocks(raw, layers)?;
    let marked = |marks: &[bool]| BlockSet::Marked(marks.to_vec());
    let chunked = match raw.marks("layer_types", layers, "chunked_attention", "full_attention")? {
        None => turned.clone(),
        Some(marks) => marks,
    };
    let chunks = match raw.get("attention_chunk_size") {
        Some(_) => Some((marked(&chunked), raw.size("attention_chunk_size")?)),
        None if raw.get("layer_types").is_some() && chunked.contains(&true) => {
            return Err(
                raw.problem("attention_chunk_size", "is null, and `layer_types` has chunked_attention")
            );
        }
        None => None,
    };
    let others: Vec<bool> = turned.iter().map(|turned| !turned).collect();
    let growth = QueryGrowth {
        beta: raw.float_or("attn_scale", 0.1)?,
        period: raw.size_or("floor_scale", 8192)?,
        offset: 1,
    };
    let query_growth = raw.flag_or("attn_temperature_tuning", true)?.then(|| (marked(&others), growth));
    let dense_size = raw.size_or("intermediate_size_mlp", 16384)?;
    let experts = ExpertsConfig {
        count: raw.size_or("num_local_experts", 16)?,
        chosen: raw.size_or("num_experts_per_tok", 1)?,
        scores: Scores::SigmoidOfLogits,
        weighs_inputs: true,
        intermediate_size: base.intermediate_size,
        shared_intermediate_size: Some(base.intermediate_size),
        dense_blocks: dense_blocks(raw, layers)?,
        ..ExpertsConfig::default()
    };
    let alternate =
        AlternateAttention { blocks: marked(&turned), positions: base.positions, sliding_window: None };
    DecoderConfig {
        family: "llama4",
        positions: Positions::None,
        alternate: Some(alternate),
        query_key_norms: raw.flag_or("use_qk_norm", true)?.then_some(QueryKeyNorms::WithoutGains),
        intermediate_size: dense_size,
        chunks,
        query_growth,
        experts: Some(experts),
        ..base
    }
    .validate(raw)
}

/// `no_rope_layers` has a 1 for each block *with* rotary positions; without it all but each `no_rope_layer_interval`-th have.
fn rotated_blocks(raw: &RawConfig, layers: usize) -> Result<Vec<bool>, Error> {
    const KEY: &str = "no_rope_layers";
    let list = raw.get(KEY).and_then(Value::as_array).filter(|list| !list.is_empty());
    let Some(list) = list else {
        let period = raw.size_or("no_rope_layer_interval", 4)?;
        return Ok((0..layers).map(|layer| !(layer + 1).is_multiple_of(period)).collect());
    };
    let marks: Option<Vec<bool>> = list
        .iter()
        .map(|mark| match mark.as_u64() {
            Some(0) => Some(false),
            Some(1) => Some(true),
            _ => None,
        })
        .collect();
    marks
        .filter(|marks| marks.len() == layers)
        .ok_or_else(|| raw.problem(KEY, format!("is no list of {layers} numbers, 0 or 1, one a layer")))
}

/// The blocks that `moe_layers` does not name, or else all but each `interleave_moe_layer_step`-th.
fn dense_blocks(raw: &RawConfig, layers: usize) -> Result<Vec<usize>, Error> {
    const KEY: &str = "moe_layers";
    let Some(value) = raw.get(KEY) else {
        let step = raw.size_or("interleave_moe_layer_step", 1)?;
        return Ok((0..layers).filter(|layer| !(layer + 1).is_multiple_of(step)).collect());
    };
    let index = |value: &Value| value.as_u64().and_then(|index| usize::try_from(index).ok());
    let named: Option<Vec<usize>> = value.as_array().and_then(|list| list.iter().map(index).collect());
    let named =
        named.ok_or_else(|| raw.problem(KEY, format!("is {value}; expected a list of indices of layers")))?;
    Ok((0..layers).filter(|layer| !named.contains(layer)).collect())
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    let layer = move |index| {
        let block = llama::module(index);
        let plain = rotated(index, &config);
        let turned = matches!(config.attention(index).0, Positions::Rotary(_));
        LayerNames {
            query_key_norms: config
                .query_key_norms
                .filter(|_| turned)
                .map(|_| ["self_attn.q_norm", "self_attn.k_norm"].map(|norm| block.name(norm))),
            mlp: match &config.experts {
                Some(experts) if experts.in_block(index) => expert_names(index, experts.count),
                _ => block.mlp(["feed_forward.gate_proj", "feed_forward.up_proj"], "feed_forward.down_proj"),
            },
            ..plain
        }
    };
    let roots = &["language_model.model.", "model.language_model.", "model.", ""];
    TensorNames { roots, ..llama::tensors(layer) }
}

/// Weights are `[experts, in, out]`.
fn expert_names(index: usize, count: usize) -> MlpNames {
    let mlp = Module::new(llama::module(index).name("feed_forward"));
    MlpNames::Experts(vec![ExpertNames {
        router: vec![mlp.name("router")],
        correction: None,
        fused: None,
        expert: Box::new(move |expert| {
            if expert == count {
                let shared = Module::new(mlp.name("shared_expert"));
                return (shared.parts(["gate_proj", "up_proj"]), shared.part("down_proj"));
            }
            let part = |name: &str| Part::new(&mlp.name(name)).slab(expert).conv1d();
            (vec![part("experts.gate_up_proj")], part("experts.down_proj"))
        }),
    }])
}
