//! LFM2 (Liquid AI, 2025), its mixture of experts, and LFM3 (2026): short convolutions between gates, with attention in some
//! blocks; in LFM3 some of it in windows, behind a gate for each head, and with norms of the outputs of branches.

use serde_json::{Value, json};

use super::llama::{self, module};
use super::{Family, LayerNames, LinearNames, MlpNames, Module, RecurrentNames, TensorNames, moe};
use crate::config::{
    AlternateAttention, AttentionGate, Biases, BlockSet, DecoderConfig, ExpertsConfig, GateFunction,
    GatedConvolution, Mixer, Positions, QueryKeyNorms, RawConfig, RecurrentMixer, RotaryDefaults,
};
use crate::{Error, convert};

pub(crate) const FAMILY: Family = Family { model_types: &["lfm2", "lfm2_moe", "lfm3"], config, names };

const TYPES: &str = "layer_types";

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.renamed("tie_embedding", "tie_word_embeddings").with_defaults(&[
        ("tie_word_embeddings", json!(true)),
        ("max_position_embeddings", json!(128_000)),
        ("norm_eps", json!(1e-5)),
    ]);
    match raw.text_or("model_type", "")? {
        "lfm3" => third(raw),
        "lfm2_moe" => mixture(raw),
        _ => second(raw),
    }?
    .validate(raw)
}

/// What all share, of blocks of these kinds.
fn base(raw: &RawConfig, kinds: &[String], rotary: RotaryDefaults) -> Result<DecoderConfig, Error> {
    // LFM2 has no such key, and the convolution's bias is that of its projections, too.
    let raw = &raw.with_defaults(&[("num_key_value_heads", json!(8))]);
    let base = llama::base(raw, rotary)?;
    let mixer = |kind: &String| if kind == "conv" { Mixer::Recurrent } else { Mixer::Attention };
    let convolution = GatedConvolution {
        channels: base.hidden_size,
        kernel: raw.size_or("conv_L_cache", 3)?,
        biases: raw.flag_or("conv_bias", false)?,
    };
    Ok(DecoderConfig {
        norm_eps: raw.float_or("norm_eps", 1e-5)?,
        query_key_norms: Some(QueryKeyNorms::PerHead),
        biases: Biases::blocks(false),
        mixers: Some(kinds.iter().map(mixer).collect()),
        recurrent: Some(RecurrentMixer::ShortConvolution(convolution)),
        ..base
    })
}

const ROTARY: RotaryDefaults = RotaryDefaults { theta: 1_000_000.0, share: 1.0, partial: false };

fn second(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    const ATTENDING: &str = "full_attn_idxs";
    let layers = raw.size("num_hidden_layers")?;
    let kinds = match (raw.get(TYPES), raw.get(ATTENDING)) {
        (Some(_), _) => layer_types(raw, layers, &["conv", "full_attention"])?,
        (None, None) => vec!["full_attention".to_owned(); layers],
        (None, Some(Value::Array(indices))) => {
            let kind = |index| if indices.contains(&json!(index)) { "full_attention" } else { "conv" };
            (0..layers).map(kind).map(str::to_owned).collect()
        }
        (None, Some(other)) => {
            return Err(raw.problem(ATTENDING, format!("is {other}; expected a list of layers")));
        }
    };
    let base = base(raw, &kinds, ROTARY)?;
    let wide = raw.size_or("block_ff_dim", base.intermediate_size)?;
    let intermediate_size = match raw.flag_or("block_auto_adjust_ff_dim", true)? {
        false => wide,
        true => {
            let adjusted = 2 * wide / 3;
            if raw.is_null("block_ffn_dim_multiplier") {
                adjusted
            } else {
                let factor = raw.positive_or("block_ffn_dim_multiplier", 1.0)?;
                let multiple = raw.size_or("block_multiple_of", 256)?;
                convert::fraction_of(adjusted, factor).next_multiple_of(multiple)
            }
        }
    };
    Ok(DecoderConfig { family: "lfm2", intermediate_size, ..base })
}

fn mixture(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let kinds = layer_types(raw, raw.size("num_hidden_layers")?, &["conv", "full_attention"])?;
    let base = base(raw, &kinds, ROTARY)?;
    let experts = ExpertsConfig {
        count: raw.size_or("num_experts", 32)?,
        chosen: raw.size_or("num_experts_per_tok", 4)?,
        sum_floor: 1e-6,
        groups: None,
        correction: raw.flag_or("use_expert_bias", true)?,
        intermediate_size: raw.size_or("moe_intermediate_size", 1792)?,
        dense_blocks: (0..raw.index_or("num_dense_layers", 2)?).collect(),
        ..moe::sigmoid(raw)?
    };
    Ok(DecoderConfig { family: "lfm2_moe", experts: Some(experts), ..base })
}

fn third(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    const ROTARY_KEY: &str = "rope_parameters";
    let rotary = json!({
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": {
            "rope_type": "proportional", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.5
        },
    });
    let raw = &if raw.get(ROTARY_KEY).is_none() { raw.without(ROTARY_KEY) } else { raw.clone() };
    let raw = &raw.with_defaults(&[
        ("head_dim", json!(128)),
        ("num_key_value_heads", json!(4)),
        ("conv_L_cache", json!(7)),
        (ROTARY_KEY, rotary),
    ]);
    let raw = &raw.renamed("rms_norm_eps", "norm_eps");
    let layers = raw.size("num_hidden_layers")?;
    let kinds = match raw.get(TYPES) {
        Some(_) => layer_types(raw, layers, &["conv", "full_attention", "sliding_attention"])?,
        None => (0..layers)
            .map(|layer| match layer % 4 {
                2 => "full_attention",
                0 if layer > 0 => "sliding_attention",
                _ => "conv",
            })
            .map(str::to_owned)
            .collect(),
    };
    let of = |kind| llama::rotary_of(raw, kind, ROTARY);
    let (full, sliding) = (of("full_attention")?, of("sliding_attention")?);
    let base = base(&raw.without(ROTARY_KEY), &kinds, ROTARY)?;
    let biased = raw.flag_or("attention_bias", false)?;
    let alternate = AlternateAttention {
        blocks: BlockSet::Marked(kinds.iter().map(|kind| kind == "sliding_attention").collect()),
        positions: Positions::Rotary(sliding),
        sliding_window: match raw.is_null("sliding_window") {
            true => None,
            false => Some(raw.size_or("sliding_window", 256)?),
        },
    };
    Ok(DecoderConfig {
        family: "lfm3",
        biases: Biases::of(biased, false),
        branch_norms: raw.flag_or("use_sandwich_norm", true)?,
        attention_gate: raw
            .flag_or("use_attention_gate", true)?
            .then_some(AttentionGate { function: GateFunction::Sigmoid, by_head: true }),
        positions: Positions::Rotary(full),
        alternate: Some(alternate),
        ..base
    })
}

/// The kinds of all blocks, each one of `known`.
fn layer_types(raw: &RawConfig, layers: usize, known: &[&str]) -> Result<Vec<String>, Error> {
    let list = raw.get(TYPES).and_then(Value::as_array).filter(|list| list.len() == layers);
    let list =
        list.ok_or_else(|| raw.problem(TYPES, format!("is no list of the types of {layers} layers")))?;
    let kind = |kind: &Value| match kind.as_str().filter(|kind| known.contains(kind)) {
        Some(kind) => Ok(kind.to_owned()),
        None => Err(raw.problem(TYPES, format!("has {kind}; implemented: {}", known.join(", ")))),
    };
    list.iter().map(kind).collect()
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    let names = llama::tensors(move |index| layer(index, &config));
    TensorNames {
        final_norm: Some("embedding_norm"),
        other_names: &[("self_attn.gate_proj", "self_attn.g_proj")],
        ..names
    }
}

fn layer(index: usize, config: &DecoderConfig) -> LayerNames {
    let block = module(index);
    let mixer = if config.mixer(index).attends() { attention(index, config) } else { convolution(&block) };
    let mlp = match &config.experts {
        Some(experts) if experts.in_block(index) => moe::Names {
            module: "feed_forward",
            correction: "feed_forward.expert_bias",
            projections: ["w1", "w3", "w2"],
            ..moe::Names::default()
        }
        .of(index, experts),
        _ => block.mlp(["feed_forward.w1", "feed_forward.w3"], "feed_forward.w2"),
    };
    let branch_norms = ["post_operator_norm", "post_ffn_norm"].map(|norm| block.name(norm));
    LayerNames { mlp, branch_norms: config.branch_norms.then_some(branch_norms), ..mixer }
        .norms(block.name("operator_norm"), block.name("ffn_norm"))
}

fn attention(index: usize, config: &DecoderConfig) -> LayerNames {
    let block = module(index);
    let plain = llama::layer(index, config);
    if config.family == "lfm3" {
        let gate = config.attention_gate.map(|_| block.part("self_attn.gate_proj").biased(false));
        return LayerNames { gate, ..plain };
    }
    let norms = ["self_attn.q_layernorm", "self_attn.k_layernorm"].map(|norm| block.name(norm));
    LayerNames {
        query_key_norms: Some(norms),
        attention_output: Some(block.part("self_attn.out_proj")),
        ..plain
    }
}

fn convolution(block: &Module) -> LayerNames {
    let mixer = Module::new(block.name("conv"));
    let parts = vec![mixer.part("in_proj")];
    let names = LinearNames {
        input: parts,
        low: Vec::new(),
        convolution: vec![mixer.name("conv")],
        decay: None,
        norm: None,
        output: mixer.part("out_proj"),
    };
    let names = LayerNames::recurrent(String::new(), RecurrentNames::Linear(Box::new(names)));
    LayerNames { mlp: MlpNames::None, ..names }
}
