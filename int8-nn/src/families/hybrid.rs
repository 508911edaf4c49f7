//! Hybrids of attention and state-space mixers: Bamba (IBM, Princeton, CMU, UIUC, 2024), Jamba (AI21, 2024; with experts) and
//! Granite 4 (IBM, 2025; with experts).

use serde_json::{Value, json};

use super::mamba::{rank, step_limits};
use super::{
    ExpertNames, Family, LayerNames, MlpNames, Module, RecurrentNames, StateSpaceNames, TensorNames,
};
use super::{granite, llama};
use crate::Error;
use crate::config::{
    Biases, DecoderConfig, ExpertsConfig, GatedNorm, Mixer, NormKind, ParameterNorms, Positions, RawConfig,
    RecurrentMixer, RotaryDefaults, Scan, SizeKeys, StateSpace, listed_layers,
};

pub(crate) const FAMILY: Family =
    Family { model_types: &["bamba", "jamba", "granitemoehybrid"], config, names };

const LAYERS: &str = "num_hidden_layers";

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    match raw.text_or("model_type", "")? {
        "bamba" => bamba(raw),
        "jamba" => jamba(raw),
        _ => granite_hybrid(raw),
    }?
    .validate(raw)
}

fn bamba(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    const ATTENDING: &str = "attn_layer_indices";
    let raw = &raw.with_defaults(&[
        ("vocab_size", json!(128_000)),
        ("hidden_size", json!(4096)),
        ("intermediate_size", json!(14336)),
        ("num_hidden_layers", json!(32)),
        ("num_attention_heads", json!(32)),
        ("num_key_value_heads", json!(8)),
        ("rms_norm_eps", json!(1e-5)),
        ("max_position_embeddings", json!(262_144)),
        ("eos_token_id", json!(2)),
    ]);
    let rotary = RotaryDefaults { share: 0.5, partial: true, ..RotaryDefaults::default() };
    listed_layers(raw, LAYERS)?;
    let base = llama::base(raw, rotary)?;
    let attending = match raw.get(ATTENDING) {
        None => Vec::new(),
        Some(Value::Array(indices)) => indices.clone(),
        Some(other) => return Err(raw.problem(ATTENDING, format!("is {other}; expected a list of layers"))),
    };
    let mixer = |index: usize| {
        if attending.contains(&json!(index)) { Mixer::Attention } else { Mixer::Recurrent }
    };
    let (attention, mlp) = (raw.flag_or("attention_bias", false)?, raw.flag_or("mlp_bias", false)?);
    Ok(DecoderConfig {
        family: "bamba",
        biases: Biases::of(attention, mlp),
        mixers: Some((0..base.layers).map(mixer).collect()),
        recurrent: Some(RecurrentMixer::StateSpace(checked_heads(raw)?)),
        ..base
    })
}

/// Blocks of attention have experts, too; some blocks of either kind do.
fn jamba(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.renamed("num_local_experts", "num_experts").with_defaults(&[
        ("vocab_size", json!(65536)),
        ("hidden_size", json!(4096)),
        ("intermediate_size", json!(14336)),
        ("num_hidden_layers", json!(32)),
        ("num_attention_heads", json!(32)),
        ("num_key_value_heads", json!(8)),
        ("eos_token_id", json!(2)),
    ]);
    let sized = DecoderConfig::sized(raw, SizeKeys::default())?;
    let (hidden, layers) = (sized.hidden_size, listed_layers(raw, LAYERS)?);
    let eps = raw.float_or("rms_norm_eps", 1e-6)?;
    let periodic = |period: &str, offset: &str, defaults: (usize, usize)| -> Result<Vec<bool>, Error> {
        let (period, offset) = (raw.size_or(period, defaults.0)?, raw.index_or(offset, defaults.1)?);
        Ok((0..layers).map(|index| index % period == offset).collect())
    };
    let attending = periodic("attn_layer_period", "attn_layer_offset", (8, 4))?;
    let mixers = attending.iter().map(|attends| if *attends { Mixer::Attention } else { Mixer::Recurrent });
    let count = raw.size_or("num_experts", 16)?;
    let with_experts = periodic("expert_layer_period", "expert_layer_offset", (2, 1))?;
    let dense_blocks: Vec<usize> = (0..layers).filter(|index| !with_experts[*index]).collect();
    let intermediate_size = raw.size("intermediate_size")?;
    let experts = ExpertsConfig {
        count,
        chosen: raw.size_or("num_experts_per_tok", 2)?,
        intermediate_size,
        dense_blocks,
        ..ExpertsConfig::default()
    };
    let biased = raw.flag_or("mamba_proj_bias", false)?;
    let space = StateSpace {
        channels: raw.size_or("mamba_expand", 2)? * hidden,
        dimensions: raw.size_or("mamba_d_state", 16)?,
        kernel: raw.size_or("mamba_d_conv", 4)?,
        convolution_bias: raw.flag_or("mamba_conv_bias", true)?,
        activation: raw.activation("hidden_act", "silu")?,
        input_bias: biased,
        output_bias: biased,
        scan: Scan::Selective {
            rank: rank(raw, "mamba_dt_rank", hidden)?,
            norms: Some(ParameterNorms { eps, gains: true }),
            heads: None,
        },
        multipliers: None,
    };
    Ok(DecoderConfig {
        family: "jamba",
        kv_heads: raw.size_or("num_key_value_heads", sized.heads)?,
        intermediate_size,
        max_positions: raw.size_or("max_position_embeddings", 262_144)?,
        norm: NormKind::RmsNorm,
        norm_eps: eps,
        activation: raw.activation("hidden_act", "silu")?,
        gated_mlp: true,
        biases: Biases::blocks(false),
        experts: (count > 1).then_some(experts),
        mixers: Some(mixers.collect()),
        recurrent: Some(RecurrentMixer::StateSpace(space)),
        ..sized
    })
}

fn granite_hybrid(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    const SHARED: &str = "shared_intermediate_size";
    let raw = &raw.with_defaults(&[
        ("num_local_experts", json!(8)),
        (SHARED, json!(1024)),
        ("eos_token_id", json!(2)),
    ]);
    listed_layers(raw, LAYERS)?;
    // Without experts the shared MLP is the block's MLP.
    let has_experts = raw.index_or("num_local_experts", 8)? > 0;
    let base = if has_experts {
        granite::config(raw)?
    } else {
        let shared = raw.get(SHARED).cloned().unwrap_or_default();
        let replaced = [("model_type", json!("granite")), ("intermediate_size", shared)];
        let raw = raw.without("model_type").without("intermediate_size").without("mlp_bias");
        granite::config(&raw.with_defaults(&replaced))?
    };
    let rotary = raw.text_or("position_embedding_type", "")? == "rope";
    let mixers = match raw.get("layer_types") {
        None => vec![Mixer::Recurrent; base.layers],
        Some(_) => layer_types(raw, "layer_types", Some(base.layers))?,
    };
    Ok(DecoderConfig {
        family: "granitemoehybrid",
        positions: if rotary { base.positions } else { Positions::None },
        mixers: Some(mixers),
        recurrent: Some(RecurrentMixer::StateSpace(checked_heads(raw)?)),
        ..base
    })
}

/// The mixers that the list under `key` names, of `layers` layers if their number is known.
pub(super) fn layer_types(raw: &RawConfig, key: &str, layers: Option<usize>) -> Result<Vec<Mixer>, Error> {
    let list = raw.get(key).and_then(Value::as_array);
    let list = list.filter(|list| layers.is_none_or(|layers| list.len() == layers));
    let list = list.ok_or_else(|| raw.problem(key, "is no list of the types of all layers"))?;
    let mixer = |kind: &Value| match kind.as_str() {
        Some("linear_attention" | "mamba") => Ok(Mixer::Recurrent),
        Some("full_attention" | "attention") => Ok(Mixer::Attention),
        _ => Err(raw.problem(key, format!("has {kind}; implemented: full_attention, linear_attention"))),
    };
    list.iter().map(mixer).collect()
}

fn checked_heads(raw: &RawConfig) -> Result<StateSpace, Error> {
    let space = heads(raw)?;
    check_head_size(raw, "mamba_d_head", &space)?;
    Ok(space)
}

/// Refuses heads whose width under `key` is not that of `heads` heads of all channels.
pub(super) fn check_head_size(raw: &RawConfig, key: &str, space: &StateSpace) -> Result<(), Error> {
    let Scan::Heads { heads, .. } = space.scan else { return Ok(()) };
    match raw.get(key) {
        Some(value) if value != "auto" && raw.size(key)?.saturating_mul(heads) != space.channels => {
            let channels = space.channels;
            Err(raw.problem(
                key,
                format!("is {value}; {heads} heads of it are not the mixer's {channels} channels"),
            ))
        }
        _ => Ok(()),
    }
}

/// Mamba-2 under the keys `mamba_…`, with a norm in groups behind the gate.
pub(super) fn heads(raw: &RawConfig) -> Result<StateSpace, Error> {
    let groups = raw.size_or("mamba_n_groups", 1)?;
    let eps = raw.float_or("rms_norm_eps", 1e-6)?;
    let channels = raw.size_or("mamba_expand", 2)? * raw.size("hidden_size")?;
    let biased = raw.flag_or("mamba_proj_bias", false)?;
    let heads = raw.size_or("mamba_n_heads", 128)?;
    Ok(StateSpace {
        channels,
        dimensions: raw.size_or("mamba_d_state", 256)?,
        kernel: raw.size_or("mamba_d_conv", 4)?,
        convolution_bias: raw.flag_or("mamba_conv_bias", true)?,
        activation: raw.activation("hidden_act", "silu")?,
        input_bias: biased,
        output_bias: biased,
        scan: Scan::Heads {
            heads,
            groups,
            step_limits: step_limits(raw)?,
            norm: Some(GatedNorm { groups, eps, before_gate: false }),
        },
        multipliers: None,
    })
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    let is_granite = config.family == "granitemoehybrid";
    let tensors = llama::tensors({
        let config = config.clone();
        move |index| if is_granite { granite_layer(index, &config) } else { layer(index, &config) }
    });
    TensorNames { final_norm: Some(if is_granite { "norm" } else { "final_layernorm" }), ..tensors }
}

/// The mixer of a block, without norms and MLP.
fn mixer(index: usize, config: &DecoderConfig) -> LayerNames {
    if config.mixer(index).attends() {
        return llama::layer(index, config);
    }
    let mixer = Module::new(llama::module(index).name("mamba"));
    let names = match &config.recurrent {
        Some(RecurrentMixer::StateSpace(StateSpace { scan: Scan::Selective { .. }, .. })) => {
            StateSpaceNames::mamba(&mixer)
        }
        _ => StateSpaceNames::mamba2(&mixer),
    };
    LayerNames::recurrent(String::new(), RecurrentNames::StateSpace(Box::new(names)))
}

fn layer(index: usize, config: &DecoderConfig) -> LayerNames {
    let block = llama::module(index);
    let mlp = Module::new(block.name("feed_forward"));
    let mlp = match config.experts.as_ref().filter(|experts| experts.in_block(index)) {
        None => mlp.mlp(["gate_proj", "up_proj"], "down_proj"),
        Some(_) => MlpNames::Experts(vec![ExpertNames {
            router: vec![mlp.name("router")],
            correction: None,
            fused: Some(["experts.gate_up_proj", "experts.down_proj"].map(|name| mlp.name(name))),
            expert: Box::new(move |expert| {
                let expert = Module::new(mlp.name(&format!("experts.{expert}")));
                (expert.parts(["gate_proj", "up_proj"]), expert.part("down_proj"))
            }),
        }]),
    };
    LayerNames { mlp, ..mixer(index, config) }
        .norms(block.name("input_layernorm"), block.name("pre_ff_layernorm"))
}

fn granite_layer(index: usize, config: &DecoderConfig) -> LayerNames {
    let block = llama::module(index);
    let mlp = match &config.experts {
        None => block.mlp(["shared_mlp.input_linear"], "shared_mlp.output_linear"),
        Some(experts) => MlpNames::Experts(granite::expert_names(index, experts.count)),
    };
    LayerNames { mlp, ..mixer(index, config) }
        .norms(block.name("input_layernorm"), block.name("post_attention_layernorm"))
}
