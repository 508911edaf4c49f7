//! MiniMax-Text-01 (MiniMax, 2025): lightning attention in some blocks, attention in the others, and Mixtral's experts; the
//! residual stream is the output of the norms.

use serde_json::json;

use super::{
    Family, LayerNames, LinearNames, MlpNames, Module, RecurrentNames, TensorNames, hybrid, llama, mixtral,
};
use crate::Error;
use crate::config::{
    Biases, BlockKind, BlockSet, BranchFactors, DecoderConfig, ExpertsConfig, Lightning, Mixer, RawConfig,
    RecurrentMixer, RotaryDefaults,
};
use crate::weights::Rows;

pub(crate) const FAMILY: Family = Family { model_types: &["minimax"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    const HEAD: &str = "head_dim";
    const KV: &str = "num_key_value_heads";
    let heads = raw.size_or("num_attention_heads", 32)?;
    let kv_heads = if raw.is_null(KV) { heads } else { 8 };
    let raw = &[HEAD, KV]
        .into_iter()
        .fold(raw.clone(), |raw, key| if raw.is_null(key) { raw.without(key) } else { raw })
        .renamed("num_experts", "num_local_experts")
        .with_defaults(&[
            ("vocab_size", json!(32000)),
            ("hidden_size", json!(4096)),
            ("intermediate_size", json!(14336)),
            ("num_hidden_layers", json!(32)),
            ("num_attention_heads", json!(32)),
            (KV, json!(kv_heads)),
            ("rms_norm_eps", json!(1e-5)),
            ("max_position_embeddings", json!(131_072)),
            ("num_local_experts", json!(8)),
            ("eos_token_id", json!(2)),
        ]);
    let base = llama::base(raw, RotaryDefaults { theta: 1_000_000.0, ..RotaryDefaults::default() })?;
    let experts = ExpertsConfig {
        count: raw.size("num_local_experts")?,
        chosen: raw.size_or("num_experts_per_tok", 2)?,
        normalized: true,
        intermediate_size: base.intermediate_size,
        ..ExpertsConfig::default()
    };
    let lightning = Lightning {
        heads: base.heads,
        head_size: base.head_size,
        activation: base.activation,
        norm_eps: 1e-6,
        blocks: base.layers,
    };
    let mixers = match raw.get("layer_types") {
        Some(_) => hybrid::layer_types(raw, "layer_types", Some(base.layers))?,
        None => [Mixer::Attention, Mixer::Recurrent].into_iter().cycle().take(base.layers).collect(),
    };
    let factors = |kind: &str| -> Result<[f32; 3], Error> {
        let of = |branch: &str| raw.float_or(&format!("{branch}_{kind}_factor"), 1.0);
        Ok([of("full_attn")?, of("linear_attn")?, of("mlp")?])
    };
    let differ = |factors: &[f32; 3]| factors.iter().any(|factor| *factor != 1.0);
    let branches = Some(factors("beta")?).filter(differ).map(|[attention, recurrent, mlp]| BranchFactors {
        attention_input: 1.0,
        attention,
        recurrent_input: 1.0,
        recurrent,
        gate: 1.0,
        mlp,
    });
    let config = DecoderConfig {
        family: "minimax",
        block: BlockKind::NormedResidual,
        biases: Biases::blocks(false),
        experts: Some(experts),
        mixers: Some(mixers),
        recurrent: Some(RecurrentMixer::Lightning(lightning)),
        branch_factors: branches,
        residual_factors: Some(factors("alpha")?).filter(differ),
        ..base
    };
    llama::windowed(&raw.without("layer_types"), config, BlockSet::From { first: 0 })?.validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| {
        let block = llama::module(index);
        let mixer = match &config.recurrent {
            Some(RecurrentMixer::Lightning(lightning)) if config.mixer(index).recurs() => {
                linear(&Module::new(block.name("self_attn")), lightning)
            }
            _ => llama::layer(index, &config),
        };
        LayerNames { mlp: mixtral::mlp(index), ..mixer }
            .norms(block.name("input_layernorm"), block.name("post_attention_layernorm"))
    })
}

/// Queries, keys and values are one projection, head by head.
fn linear(mixer: &Module, lightning: &Lightning) -> LayerNames {
    let Lightning { heads, head_size, .. } = *lightning;
    let part = |third: usize| {
        let rows = (0..heads).flat_map(|head| {
            let first = (3 * head + third) * head_size;
            first..first + head_size
        });
        mixer.part("qkv_proj").rows(Rows::Gather { rows: rows.collect(), of: 3 * heads * head_size })
    };
    let names = LinearNames {
        input: vec![part(0), part(1), part(2), mixer.part("output_gate")],
        low: Vec::new(),
        convolution: Vec::new(),
        decay: None,
        norm: Some(mixer.name("norm")),
        output: mixer.part("out_proj"),
    };
    let names = LayerNames::recurrent(String::new(), RecurrentNames::Linear(Box::new(names)));
    LayerNames { mlp: MlpNames::None, ..names }
}
