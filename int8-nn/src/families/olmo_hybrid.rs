//! OLMo Hybrid (Ai2, 2026): Gated DeltaNet behind a norm, and in each fourth block OLMo 2's attention, whose norms follow.

use serde_json::json;

use super::{Family, LayerNames, LinearNames, MlpNames, Module, RecurrentNames, TensorNames, hybrid, llama};
use crate::Error;
use crate::config::{
    Activation, Biases, DecoderConfig, GatedDelta, Mixer, Positions, QueryKeyNorms, RawConfig,
    RecurrentMixer, RotaryDefaults,
};

pub(crate) const FAMILY: Family = Family { model_types: &["olmo_hybrid"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    const ROTARY: &str = "rope_parameters";
    let raw = &raw.with_defaults(&[
        ("vocab_size", json!(100_352)),
        ("hidden_size", json!(3840)),
        ("intermediate_size", json!(11008)),
        ("num_hidden_layers", json!(32)),
        ("num_attention_heads", json!(30)),
        ("max_position_embeddings", json!(65536)),
        ("eos_token_id", json!(100_257)),
    ]);
    let unrotated = raw
        .get(ROTARY)
        .is_some_and(|parameters| parameters.get("rope_theta").is_some_and(serde_json::Value::is_null));
    let base = if unrotated {
        let base = llama::base(&raw.without(ROTARY), RotaryDefaults::default())?;
        DecoderConfig { positions: Positions::None, ..base }
    } else {
        llama::base(raw, RotaryDefaults::default())?
    };
    let key_heads = raw.size_or("linear_num_key_heads", base.heads)?;
    let key_size = raw.size_or("linear_key_head_dim", 3 * base.hidden_size / (4 * key_heads))?;
    let delta = GatedDelta {
        heads: raw.size_or("linear_num_value_heads", base.heads)?,
        key_heads,
        key_size,
        value_size: raw.size_or("linear_value_head_dim", 2 * key_size)?,
        kernel: raw.size_or("linear_conv_kernel_dim", 4)?,
        activation: base.activation,
        beta_scale: if raw.flag_or("linear_allow_neg_eigval", true)? { 2.0 } else { 1.0 },
        norm_eps: 1e-5,
        gate: Activation::Silu,
        rank: None,
    };
    let attention = raw.flag_or("attention_bias", false)?;
    DecoderConfig {
        family: "olmo_hybrid",
        branch_norms: true,
        query_key_norms: Some(QueryKeyNorms::Whole),
        biases: Biases::of(attention, false),
        mixers: Some(mixers(raw, base.layers)?),
        recurrent: Some(RecurrentMixer::GatedDelta(delta)),
        ..base
    }
    .validate(raw)
}

/// `layer_types`, or attention in each fourth block, and in the last one if there are fewer.
fn mixers(raw: &RawConfig, layers: usize) -> Result<Vec<Mixer>, Error> {
    if raw.get("layer_types").is_some() {
        return hybrid::layer_types(raw, "layer_types", Some(layers));
    }
    let attends = |layer: usize| layer % 4 == 3 || (layers < 4 && layer + 1 == layers);
    let mixer = |layer| if attends(layer) { Mixer::Attention } else { Mixer::Recurrent };
    Ok((0..layers).map(mixer).collect())
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    let names = llama::tensors(move |index| {
        let block = llama::module(index);
        let mlp = block.mlp(["mlp.gate_proj", "mlp.up_proj"], "mlp.down_proj");
        if config.mixer(index).recurs() {
            let mixer = linear(&Module::new(block.name("linear_attn")));
            let norms = ["attention_layer_norm", "feedforward_layer_norm"].map(|norm| block.name(norm));
            let [attention, of_mlp] = norms;
            return LayerNames { mlp, ..mixer }.norms(attention, of_mlp);
        }
        let norms = ["post_attention_layernorm", "post_feedforward_layernorm"];
        LayerNames {
            attention_norm: None,
            mlp_norm: None,
            branch_norms: Some(norms.map(|norm| block.name(norm))),
            mlp,
            ..llama::layer(index, &config)
        }
    });
    // The names of published files and of those that transformers writes: it renames the norms of both kinds of blocks.
    let other_names = &[
        ("attention_layer_norm", "input_layernorm"),
        ("feedforward_layer_norm", "post_attention_layernorm"),
        ("post_attention_layernorm", "feedforward_layer_norm"),
    ];
    TensorNames { other_names, ..names }
}

fn linear(mixer: &Module) -> LayerNames {
    let names = LinearNames {
        input: mixer.parts(["q_proj", "k_proj", "v_proj", "g_proj", "b_proj", "a_proj"]),
        low: Vec::new(),
        convolution: ["q_conv1d", "k_conv1d", "v_conv1d"].map(|name| mixer.name(name)).into(),
        decay: Some(["A_log", "dt_bias"].map(|name| mixer.name(name))),
        norm: Some(mixer.name("o_norm")),
        output: mixer.part("o_proj"),
    };
    let names = LayerNames::recurrent(String::new(), RecurrentNames::Linear(Box::new(names)));
    LayerNames { mlp: MlpNames::None, ..names }
}
