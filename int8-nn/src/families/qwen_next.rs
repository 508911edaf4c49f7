//! Qwen3-Next (Qwen Team, 2025), Qwen3.5 (2026) and their mixtures of experts: three blocks of Gated DeltaNet to one of gated
//! attention.

use serde_json::json;

use super::llama::{self, module};
use super::{
    Family, LayerNames, LinearNames, MlpNames, Module, RecurrentNames, TensorNames, hybrid, qwen_moe,
};
use crate::Error;
use crate::config::{
    Activation, AttentionGate, Biases, DecoderConfig, ExpertsConfig, GateFunction, GatedDelta, Mixer,
    QueryKeyNorms, RawConfig, RecurrentMixer, RotaryDefaults,
};
use crate::weights::{Part, Rows};

pub(crate) const FAMILY: Family =
    Family { model_types: &["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let family = match raw.text_or("model_type", "")? {
        "qwen3_5_text" => "qwen3_5_text",
        "qwen3_5_moe_text" => "qwen3_5_moe_text",
        _ => "qwen3_next",
    };
    let (count, chosen, kv_heads) = match family {
        "qwen3_next" => (512, 10, 2),
        "qwen3_5_moe_text" => (256, 8, 2),
        _ => (1, 1, 4),
    };
    let raw = &raw.with_defaults(&[
        ("head_dim", json!(256)),
        ("num_key_value_heads", json!(kv_heads)),
        ("max_position_embeddings", json!(32768)),
        ("num_experts", json!(count)),
        ("num_experts_per_tok", json!(chosen)),
        ("moe_intermediate_size", json!(512)),
        ("shared_expert_intermediate_size", json!(512)),
        // Without dense blocks a file may have none.
        ("intermediate_size", json!(5632)),
    ]);
    let base = llama::base(raw, RotaryDefaults { share: 0.25, partial: true, ..RotaryDefaults::default() })?;
    let experts = ExpertsConfig {
        count: raw.size("num_experts")?,
        chosen: raw.size("num_experts_per_tok")?,
        normalized: raw.flag_or("norm_topk_prob", true)? || family != "qwen3_next",
        intermediate_size: raw.size("moe_intermediate_size")?,
        shared_intermediate_size: Some(raw.size("shared_expert_intermediate_size")?),
        shared_gate: true,
        ..match family {
            "qwen3_next" => qwen_moe::sparse_blocks(raw)?,
            _ => ExpertsConfig::default(),
        }
    };
    DecoderConfig {
        family,
        norm_gain_less_one: true,
        query_key_norms: Some(QueryKeyNorms::PerHead),
        attention_gate: Some(AttentionGate { function: GateFunction::Sigmoid, by_head: false }),
        biases: Biases::of(raw.flag_or("attention_bias", false)?, false),
        experts: (family != "qwen3_5_text").then_some(experts),
        mixers: Some(mixers(raw, base.layers)?),
        recurrent: Some(RecurrentMixer::GatedDelta(delta(raw)?)),
        ..base
    }
    .validate(raw)
}

/// `layer_types`, or attention in each `full_attention_interval`-th block.
fn mixers(raw: &RawConfig, layers: usize) -> Result<Vec<Mixer>, Error> {
    if raw.get("layer_types").is_some() {
        return hybrid::layer_types(raw, "layer_types", Some(layers));
    }
    let period = raw.size_or("full_attention_interval", 4)?;
    let mixer = |layer: usize| {
        if (layer + 1).is_multiple_of(period) { Mixer::Attention } else { Mixer::Recurrent }
    };
    Ok((0..layers).map(mixer).collect())
}

/// Gated DeltaNet under the keys `linear_…`.
fn delta(raw: &RawConfig) -> Result<GatedDelta, Error> {
    Ok(GatedDelta {
        heads: raw.size_or("linear_num_value_heads", 32)?,
        key_heads: raw.size_or("linear_num_key_heads", 16)?,
        key_size: raw.size_or("linear_key_head_dim", 128)?,
        value_size: raw.size_or("linear_value_head_dim", 128)?,
        kernel: raw.size_or("linear_conv_kernel_dim", 4)?,
        activation: raw.activation("hidden_act", "silu")?,
        beta_scale: 1.0,
        norm_eps: raw.float_or("rms_norm_eps", 1e-6)?,
        gate: Activation::Silu,
        rank: None,
    })
}

fn names(config: &DecoderConfig) -> TensorNames {
    const ROOTS: &[&str] = &["model.", "model.language_model.", ""];
    let config = config.clone();
    let names = llama::tensors(move |index| {
        let block = module(index);
        let plain = match &config.recurrent {
            Some(RecurrentMixer::GatedDelta(delta)) if config.mixer(index).recurs() => {
                let mixer = Module::new(block.name("linear_attn"));
                let input = match config.family {
                    "qwen3_next" => fused_input(&mixer, delta),
                    _ => split_input(&mixer, delta),
                };
                let names = linear_names(&mixer, input);
                LayerNames::recurrent(String::new(), RecurrentNames::Linear(Box::new(names)))
            }
            _ => attention(index, &config),
        };
        let mlp = match &config.experts {
            Some(experts) if experts.in_block(index) => qwen_moe::mlp(index, experts),
            _ => block.mlp(["mlp.gate_proj", "mlp.up_proj"], "mlp.down_proj"),
        };
        LayerNames { mlp, ..plain }
            .norms(block.name("input_layernorm"), block.name("post_attention_layernorm"))
    });
    TensorNames { roots: ROOTS, ..names }
}

fn linear_names(mixer: &Module, input: Vec<Part>) -> LinearNames {
    LinearNames {
        input,
        low: Vec::new(),
        convolution: vec![mixer.name("conv1d")],
        decay: Some(["A_log", "dt_bias"].map(|name| mixer.name(name))),
        norm: Some(mixer.name("norm")),
        output: mixer.part("out_proj"),
    }
}

/// Queries, keys and values are one projection.
fn split_input(mixer: &Module, delta: &GatedDelta) -> Vec<Part> {
    let (keys, values) = (delta.key_heads * delta.key_size, delta.heads * delta.value_size);
    let of = 2 * keys + values;
    let part = |rows: std::ops::Range<usize>| {
        mixer.part("in_proj_qkv").rows(Rows::Gather { rows: rows.collect(), of })
    };
    let first = [part(0..keys), part(keys..2 * keys), part(2 * keys..of)];
    first.into_iter().chain(mixer.parts(["in_proj_z", "in_proj_b", "in_proj_a"])).collect()
}

/// Two projections whose output channels are grouped by key head: query, key, the values and gates of its value heads; β, decay.
fn fused_input(mixer: &Module, delta: &GatedDelta) -> Vec<Part> {
    let GatedDelta { heads, key_heads, key_size, value_size, .. } = *delta;
    let (of_key, values) = (heads / key_heads, heads / key_heads * value_size);
    let part = |name: &str, group: usize, first: usize, count: usize| {
        let rows = (0..key_heads).flat_map(|head| head * group + first..head * group + first + count);
        mixer.part(name).rows(Rows::Gather { rows: rows.collect(), of: key_heads * group })
    };
    let group = 2 * key_size + 2 * values;
    let of_group = |first, count| part("in_proj_qkvz", group, first, count);
    vec![
        of_group(0, key_size),
        of_group(key_size, key_size),
        of_group(2 * key_size, values),
        of_group(2 * key_size + values, values),
        part("in_proj_ba", 2 * of_key, 0, of_key),
        part("in_proj_ba", 2 * of_key, of_key, of_key),
    ]
}

/// Attention whose query projection holds, head by head, the query and its gate.
fn attention(index: usize, config: &DecoderConfig) -> LayerNames {
    let (heads, size) = (config.heads, config.head_size);
    let half = |first: usize| {
        let rows = (0..heads).flat_map(|head| (2 * head + first) * size..(2 * head + first + 1) * size);
        let query = module(index).part("self_attn.q_proj");
        query.rows(Rows::Gather { rows: rows.collect(), of: 2 * heads * size })
    };
    let plain = llama::layer(index, config);
    let qkv = std::iter::once(half(0)).chain(plain.qkv.into_iter().skip(1)).collect();
    LayerNames { qkv, gate: Some(half(1)), mlp: MlpNames::None, ..plain }
}
