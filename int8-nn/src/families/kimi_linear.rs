//! Kimi Linear (Moonshot AI, 2025): Kimi Delta Attention, multi-head latent attention without positions in each fourth block,
//! and DeepSeek-V3's mixture of experts.

use serde_json::{Value, json};

use super::{
    Family, LayerNames, LinearNames, MlpNames, Module, RecurrentNames, TensorNames, hybrid, latent, llama,
    moe,
};
use crate::Error;
use crate::config::{
    Activation, DecoderConfig, ExpertsConfig, GatedDelta, Mixer, Positions, RawConfig, RecurrentMixer,
};

pub(crate) const FAMILY: Family = Family { model_types: &["kimi_linear"], config, names };

/// Names of keys that transformers reads, too.
const NAMES: [(&str, &str); 6] = [
    ("model_max_length", "max_position_embeddings"),
    ("moe_renormalize", "norm_topk_prob"),
    ("num_expert_group", "n_group"),
    ("num_experts", "num_local_experts"),
    ("num_experts_per_token", "num_experts_per_tok"),
    ("num_shared_experts", "n_shared_experts"),
];

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &NAMES.iter().fold(raw.clone(), |raw, (stored, name)| raw.renamed(stored, name));
    let raw = &raw.renamed("num_local_experts", "n_routed_experts").with_defaults(&[
        ("rms_norm_eps", json!(1e-5)),
        ("q_lora_rank", Value::Null),
        ("n_routed_experts", json!(256)),
        ("num_experts_per_tok", json!(8)),
        ("moe_intermediate_size", json!(1024)),
        ("routed_scaling_factor", json!(2.446)),
        ("max_position_embeddings", json!(1_048_576)),
    ]);
    let base = latent::base(raw, false)?;
    let dense_blocks = moe::dense_blocks(raw, base.layers, raw.index_or("first_k_dense_replace", 1)?)?;
    let linear = raw.get("linear_attn_config").map(|_| raw.section("linear_attn_config")).transpose()?;
    let size = |nested: &str, own: &str, default: usize| match &linear {
        Some(linear) if linear.get(nested).is_some() => linear.size(nested),
        _ => raw.size_or(own, default),
    };
    let heads = size("num_heads", "linear_num_heads", 32)?;
    let head_size = size("head_dim", "linear_head_dim", 128)?;
    let delta = GatedDelta {
        heads,
        key_heads: heads,
        key_size: head_size,
        value_size: head_size,
        kernel: size("short_conv_kernel_size", "linear_conv_kernel_dim", 4)?,
        activation: base.activation,
        beta_scale: 1.0,
        norm_eps: base.norm_eps,
        gate: Activation::Sigmoid,
        rank: Some(head_size),
    };
    DecoderConfig {
        family: "kimi_linear",
        positions: Positions::None,
        experts: Some(ExpertsConfig { dense_blocks, ..moe::deepseek(raw)? }),
        mixers: Some(mixers(raw, linear.as_ref(), base.layers)?),
        recurrent: Some(RecurrentMixer::GatedDelta(delta)),
        ..base
    }
    .validate(raw)
}

/// `layer_types`; else the lists of `linear_attn_config`, which count from 1; else attention in each fourth block but the first.
fn mixers(raw: &RawConfig, linear: Option<&RawConfig>, layers: usize) -> Result<Vec<Mixer>, Error> {
    const ATTENDING: &str = "full_attn_layers";
    const RECURRENT: &str = "kda_layers";
    if raw.get("layer_types").is_some() {
        return hybrid::layer_types(raw, "layer_types", Some(layers));
    }
    let lists = linear.and_then(|linear| Some((linear, linear.get(ATTENDING)?, linear.get(RECURRENT)?)));
    let Some((linear, attending, recurrent)) = lists else {
        let attends = |layer: usize| layer > 0 && layer.is_multiple_of(4);
        let mixer = |layer| if attends(layer) { Mixer::Attention } else { Mixer::Recurrent };
        return Ok((0..layers).map(mixer).collect());
    };
    let lists =
        |list: &Value, layer: usize| list.as_array().is_some_and(|layers| layers.contains(&json!(layer)));
    let mixer = |layer| match (lists(attending, layer), lists(recurrent, layer)) {
        (true, false) => Ok(Mixer::Attention),
        (false, true) => Ok(Mixer::Recurrent),
        _ => {
            let problem = format!("and `{RECURRENT}` must have layer {layer}, one of them");
            Err(linear.problem(ATTENDING, problem))
        }
    };
    (1..=layers).map(mixer).collect()
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    let names = llama::tensors(move |index| {
        let block = llama::module(index);
        let mixer = match config.latent {
            Some(sizes) if config.mixer(index).attends() => LayerNames {
                qkv: Vec::new(),
                latent: Some(latent::latent_names(index, sizes, config.heads)),
                ..llama::layer(index, &config)
            },
            _ => linear(&Module::new(block.name("self_attn"))),
        };
        let mlp = match &config.experts {
            Some(experts) if experts.in_block(index) => experts_of(index, experts),
            _ => block.mlp(["mlp.gate_proj", "mlp.up_proj"], "mlp.down_proj"),
        };
        LayerNames { mlp, ..mixer }
            .norms(block.name("input_layernorm"), block.name("post_attention_layernorm"))
    });
    // transformers writes dense blocks under the name of the others.
    TensorNames { other_names: &[(".mlp.", ".block_sparse_moe.")], ..names }
}

fn experts_of(index: usize, experts: &ExpertsConfig) -> MlpNames {
    let names = moe::Names {
        module: "block_sparse_moe",
        correction: "block_sparse_moe.gate.e_score_correction_bias",
        projections: ["w1", "w3", "w2"],
        ..moe::Names::default()
    };
    names.of(index, experts)
}

fn linear(mixer: &Module) -> LayerNames {
    let names = LinearNames {
        input: mixer.parts(["q_proj", "k_proj", "v_proj", "b_proj", "f_a_proj", "g_a_proj"]),
        low: mixer.parts(["f_b_proj", "g_b_proj"]),
        convolution: ["q_conv1d", "k_conv1d", "v_conv1d"].map(|name| mixer.name(name)).into(),
        decay: Some(["A_log", "dt_bias"].map(|name| mixer.name(name))),
        norm: Some(mixer.name("o_norm")),
        output: mixer.part("o_proj"),
    };
    let names = LayerNames::recurrent(String::new(), RecurrentNames::Linear(names));
    LayerNames { mlp: MlpNames::None, ..names }
}
