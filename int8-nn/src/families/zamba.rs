//! Zamba and Zamba2 (Zyphra, 2024): blocks of Mamba or Mamba-2, some of them behind a transformer whose weights they share.

use serde_json::{Value, json};

use super::hybrid;
use super::mamba::{rank, step_limits};
use super::{Family, LayerNames, Module, RecurrentNames, SharedNames, StateSpaceNames, TensorNames, llama};
use crate::config::{
    Activation, Biases, BlockSet, DecoderConfig, GatedNorm, Mixer, NormKind, Positions, RawConfig,
    RecurrentMixer, Rotary, RotaryDefaults, Scan, SharedTransformer, StateSpace, listed_layers,
};
use crate::weights::{Part, Rows};
use crate::{Error, convert};

pub(crate) const FAMILY: Family = Family { model_types: &["zamba", "zamba2"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let is_zamba2 = raw.text_or("model_type", "")? == "zamba2";
    let sizes: [(&str, Value); 4] = if is_zamba2 {
        [
            ("hidden_size", json!(2560)),
            ("num_hidden_layers", json!(54)),
            ("num_attention_heads", json!(32)),
            ("n_mamba_heads", json!(8)),
        ]
    } else {
        [
            ("hidden_size", json!(3712)),
            ("num_hidden_layers", json!(76)),
            ("num_attention_heads", json!(16)),
            ("n_mamba_heads", json!(2)),
        ]
    };
    let raw = &raw.with_defaults(&sizes).with_defaults(&[
        ("vocab_size", json!(32000)),
        ("eos_token_id", json!(2)),
        ("tie_word_embeddings", json!(true)),
    ]);
    let hidden_size = raw.size("hidden_size")?;
    let (layers, heads) = (listed_layers(raw, "num_hidden_layers")?, raw.size("num_attention_heads")?);
    joined(raw, hidden_size)?;
    let head_size = raw.size_or("attention_head_dim", 2 * hidden_size / heads)?;
    let base = DecoderConfig {
        vocab_size: raw.size("vocab_size")?,
        hidden_size,
        embedding_size: hidden_size,
        layers,
        heads,
        head_size,
        norm: NormKind::RmsNorm,
        norm_eps: raw.float_or("rms_norm_eps", 1e-5)?,
        activation: raw.activation("hidden_act", "gelu")?,
        gated_mlp: true,
        attention_divisor: Some(convert::f64_from(head_size) / 2.0),
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        eos_token_ids: raw.token_ids("eos_token_id")?,
        mixers: Some(mixers(raw, layers, is_zamba2)?),
        mlps: Some(BlockSet::Marked(vec![false])),
        ..DecoderConfig::default()
    };
    if is_zamba2 { zamba2(raw, base) } else { zamba(raw, base) }?.validate(raw)
}

/// How many of its blocks' transformers differ: `count`, but all where embedding and head are not tied, because transformers then
/// ties no weights at all.
fn different(base: &DecoderConfig, count: usize) -> usize {
    let hybrid = (0..base.layers).filter(|index| base.mixer(*index) == Mixer::SharedThenRecurrent).count();
    if base.tied_embeddings { count.min(hybrid) } else { hybrid }.max(1)
}

/// The input of the shared attention is the residual stream beside the token embedding.
fn joined(raw: &RawConfig, hidden: usize) -> Result<(), Error> {
    const KEY: &str = "attention_hidden_size";
    match raw.size_or(KEY, 2 * hidden)? {
        size if size == 2 * hidden => Ok(()),
        size => Err(raw.problem(KEY, format!("is {size}; expected twice the hidden size {hidden}"))),
    }
}

fn zamba(raw: &RawConfig, base: DecoderConfig) -> Result<DecoderConfig, Error> {
    let channels = raw.size_or("mamba_expand", 2)? * base.hidden_size;
    let heads = raw.size("n_mamba_heads")?;
    let biased = raw.flag_or("mamba_proj_bias", false)?;
    let space = StateSpace {
        channels,
        dimensions: raw.size_or("mamba_d_state", 16)?,
        kernel: raw.size_or("mamba_d_conv", 4)?,
        convolution_bias: raw.flag_or("mamba_conv_bias", true)?,
        activation: raw.activation("hidden_mamba_act", "silu")?,
        input_bias: biased,
        output_bias: biased,
        scan: Scan::Selective {
            rank: rank(raw, "mamba_dt_rank", base.hidden_size)?,
            norms: None,
            heads: Some(heads),
        },
        multipliers: None,
    };
    Ok(DecoderConfig {
        family: "zamba",
        kv_heads: raw.size_or("num_key_value_heads", 16)?,
        intermediate_size: raw.size_or("intermediate_size", 14848)?,
        max_positions: raw.size_or("max_position_embeddings", 4096)?,
        biases: Biases::blocks(false),
        recurrent: Some(RecurrentMixer::StateSpace(space)),
        shared: Some(SharedTransformer {
            count: different(&base, 1),
            adapter_rank: None,
            attention_adapters: false,
        }),
        ..base
    })
}

fn zamba2(raw: &RawConfig, base: DecoderConfig) -> Result<DecoderConfig, Error> {
    const HEADS: &str = "num_key_value_heads";
    let groups = raw.size_or("mamba_ngroups", 1)?;
    let biased = raw.flag_or("add_bias_linear", false)?;
    let [_, most] = step_limits(&raw.without("time_step_limit"))?;
    let space = StateSpace {
        channels: raw.size_or("mamba_expand", 2)? * base.hidden_size,
        dimensions: raw.size_or("mamba_d_state", 64)?,
        kernel: raw.size_or("mamba_d_conv", 4)?,
        convolution_bias: true,
        activation: Activation::Silu,
        input_bias: biased,
        output_bias: biased,
        scan: Scan::Heads {
            heads: raw.size("n_mamba_heads")?,
            groups,
            step_limits: [raw.float_or("time_step_min", 0.001)?, most],
            norm: Some(GatedNorm { groups, eps: 1e-5, before_gate: false }),
        },
        multipliers: None,
    };
    hybrid::check_head_size(raw, "mamba_headdim", &space)?;
    let kv_heads = raw.size_or(HEADS, base.heads)?;
    let attention_adapters = raw.flag_or("use_shared_attention_adapter", false)?;
    if attention_adapters && (kv_heads != base.heads || base.heads * base.head_size != 2 * base.hidden_size) {
        return Err(
            raw.problem(HEADS, "does not fit the adapters, which are as wide as the input of attention")
        );
    }
    let positions = if raw.flag_or("use_mem_rope", false)? {
        Positions::Rotary(Rotary::read(raw, base.head_size, RotaryDefaults::default())?)
    } else {
        Positions::None
    };
    let long = raw.flag_or("use_long_context", false)?;
    let adapter_rank = Some(raw.size_or("adapter_rank", 128)?);
    Ok(DecoderConfig {
        family: "zamba2",
        kv_heads,
        intermediate_size: raw.size_or("intermediate_size", 4 * base.hidden_size)?,
        max_positions: if long { 16384 } else { raw.size_or("max_position_embeddings", 4096)? },
        positions,
        biases: Biases::of(false, biased),
        recurrent: Some(RecurrentMixer::StateSpace(space)),
        shared: Some(SharedTransformer {
            count: different(&base, raw.size_or("num_mem_blocks", 1)?),
            adapter_rank,
            attention_adapters,
        }),
        ..base
    })
}

/// The list `layers_block_type`, or the released models' order without it.
fn mixers(raw: &RawConfig, layers: usize, is_zamba2: bool) -> Result<Vec<Mixer>, Error> {
    const KEY: &str = "layers_block_type";
    let Some(value) = raw.get(KEY) else {
        let period = raw.size_or("attn_layer_period", 6)?;
        let offset = raw.index_or("attn_layer_offset", 4)?;
        let in_zamba = |index: usize| index == 2 || index > 2 && (index - 3) % period == offset;
        let in_zamba2 = |index: usize| [6, 12, 18, 24, 30, 36, 42, 47, 51].contains(&index);
        let is_hybrid = |index| if is_zamba2 { in_zamba2(index) } else { in_zamba(index) };
        let mixer = |index| if is_hybrid(index) { Mixer::SharedThenRecurrent } else { Mixer::Recurrent };
        return Ok((0..layers).map(mixer).collect());
    };
    let list = value.as_array().filter(|list| list.len() == layers);
    let list = list.ok_or_else(|| raw.problem(KEY, format!("is no list of the types of {layers} layers")))?;
    let mixer = |kind: &Value| match kind.as_str() {
        Some("linear_attention" | "mamba" | "mamba2") => Ok(Mixer::Recurrent),
        Some("hybrid") => Ok(Mixer::SharedThenRecurrent),
        _ => Err(raw.problem(KEY, format!("has {kind}; implemented: linear_attention, hybrid"))),
    };
    list.iter().map(mixer).collect()
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    let hybrid: Vec<usize> =
        (0..config.layers).filter(|index| config.mixer(*index) == Mixer::SharedThenRecurrent).collect();
    let tensors = llama::tensors(move |index| {
        let block = llama::module(index);
        let place = hybrid.iter().position(|other| *other == index);
        let decoder = if place.is_some() { Module::new(block.name("mamba_decoder")) } else { block };
        let mixer = Module::new(decoder.name("mamba"));
        let mixer = match &config.recurrent {
            Some(RecurrentMixer::StateSpace(space)) if config.family == "zamba" => zamba_mixer(&mixer, space),
            _ => StateSpaceNames::mamba2(&mixer),
        };
        let names = RecurrentNames::StateSpace(Box::new(mixer));
        let shared = place.and_then(|place| shared(index, place, &hybrid, &config));
        LayerNames { shared, ..LayerNames::recurrent(decoder.name("input_layernorm"), names) }
    });
    TensorNames { final_norm: Some("final_layernorm"), ..tensors }
}

/// Each head of channels has projections of its own; the input projection has channels and gates in turn.
fn zamba_mixer(mixer: &Module, space: &StateSpace) -> StateSpaceNames {
    let of = 2 * space.channels;
    let rows = (0..of).step_by(2).chain((1..of).step_by(2)).collect();
    StateSpaceNames {
        input: mixer.part("in_proj").rows(Rows::Gather { rows, of }),
        parameters: Some(mixer.part("x_proj_weight")),
        steps: Some(mixer.part("dt_proj_weight").biased(false)),
        step_bias: Some(mixer.name("dt_proj_bias")),
        ..StateSpaceNames::mamba(mixer)
    }
}

/// The shared transformer lies in the first block that has it, the adapters of all blocks with it.
fn shared(index: usize, place: usize, hybrid: &[usize], config: &DecoderConfig) -> Option<SharedNames> {
    let settings = config.shared?;
    let first = hybrid[place % settings.count];
    let is_zamba = config.family == "zamba";
    let name = if is_zamba { "shared_transf" } else { "shared_transformer" };
    let module = Module::new(llama::module(first).name(name));
    let adapter =
        |list: String| -> [Part; 2] { [0, 1].map(|half| module.part(&format!("{list}.{place}.{half}"))) };
    let up: &[&str] = if is_zamba { &["gate_proj", "up_proj"] } else { &["gate_up_proj"] };
    Some(SharedNames {
        attention_norm: module.name("input_layernorm"),
        qkv: module.parts(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        attention_adapters: ["q", "k", "v"]
            .into_iter()
            .filter(|_| settings.attention_adapters)
            .map(|part| adapter(format!("self_attn.linear_{part}_adapter_list")))
            .collect(),
        attention_output: module.part("self_attn.o_proj"),
        mlp_norm: module.name("pre_ff_layernorm"),
        up: up.iter().map(|part| module.part(&format!("feed_forward.{part}"))).collect(),
        up_adapter: settings
            .adapter_rank
            .map(|_| adapter("feed_forward.gate_up_proj_adapter_list".to_owned())),
        down: module.part("feed_forward.down_proj"),
        output: llama::module(index).part("linear"),
    })
}
