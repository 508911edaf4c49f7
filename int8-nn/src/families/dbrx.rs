//! DBRX (Databricks, 2024): LayerNorms without bias, clamped queries, keys and values, and a mixture of experts whose weights are
//! stacked in one matrix each.

use serde_json::json;

use super::llama;
use super::{ExpertNames, Family, LayerNames, MlpNames, Module, TensorNames};
use crate::Error;
use crate::config::{Biases, DecoderConfig, ExpertsConfig, NormKind, RawConfig, RotaryDefaults};
use crate::weights::Part;

pub(crate) const FAMILY: Family = Family { model_types: &["dbrx"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let (attention, mlp) = (raw.section("attn_config")?, raw.section("ffn_config")?);
    let mut renamed = raw.clone();
    for (own, usual) in [
        ("d_model", "hidden_size"),
        ("n_heads", "num_attention_heads"),
        ("n_layers", "num_hidden_layers"),
        ("max_seq_len", "max_position_embeddings"),
    ] {
        renamed = renamed.renamed(own, usual);
    }
    let intermediate_size = mlp.size_or("ffn_hidden_size", 3584)?;
    let keys = attention.size_or("kv_n_heads", 1)?;
    let raw = &renamed.without("num_key_value_heads").with_defaults(&[
        ("num_key_value_heads", json!(keys)),
        ("intermediate_size", json!(intermediate_size)),
    ]);
    let base = llama::base(raw, RotaryDefaults::default())?;
    // transformers does not read this one.
    const THETA: &str = "rope_theta";
    if let Some(theta) = attention.get(THETA).and_then(serde_json::Value::as_f64)
        && raw.get("rope_parameters").is_none()
        && base.rotary().any(|rotary| rotary.theta != theta)
    {
        return Err(attention.problem(
            THETA,
            format!(
                "is {theta}, which transformers ignores; say what is meant in `rope_parameters` of the file"
            ),
        ));
    }
    let activation = mlp.section("ffn_act_fn")?;
    let activation = if mlp.get("ffn_act_fn").is_some() {
        activation.activation("name", "silu")?
    } else {
        base.activation
    };
    const NORM: &str = "moe_normalize_expert_weights";
    let normalized = match mlp.get(NORM) {
        None => !mlp.is_null(NORM),
        Some(p) if p.as_f64() == Some(1.0) => true,
        Some(p) => return Err(mlp.problem(NORM, format!("is {p}; implemented: 1, null"))),
    };
    let experts = ExpertsConfig {
        count: mlp.size_or("moe_num_experts", 4)?,
        chosen: mlp.size_or("moe_top_k", 1)?,
        normalized,
        intermediate_size,
        ..ExpertsConfig::default()
    };
    let limit = match attention.get("clip_qkv") {
        Some(_) => Some(attention.float_or("clip_qkv", 8.0)?),
        None => None,
    };
    DecoderConfig {
        family: "dbrx",
        norm: NormKind::LayerNorm,
        norm_eps: 1e-5,
        norm_bias: false,
        qkv_limit: limit,
        activation,
        biases: Biases::blocks(false),
        experts: Some(experts),
        ..base
    }
    .validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let (hidden, wide) = (config.hidden_size, config.intermediate_size);
    TensorNames::new(&["transformer.", ""], "wte", "norm_f", move |index| {
        let block = Module::new(format!("blocks.{index}"));
        let attention = Module::new(block.name("norm_attn_norm"));
        let mlp = Module::new(block.name("ffn.experts.mlp"));
        let experts = ExpertNames {
            router: vec![block.name("ffn.router.layer")],
            correction: None,
            fused: None,
            expert: Box::new(move |expert| {
                let part = |name: &str| Part::new(&mlp.name(name)).stacked(expert, [wide, hidden]);
                (vec![part("w1"), part("v1")], part("w2").conv1d())
            }),
        };
        LayerNames::new(
            attention.parts(["attn.Wqkv"]),
            attention.part("attn.out_proj"),
            MlpNames::Experts(vec![experts]),
        )
        .norms(attention.name("norm_1"), attention.name("norm_2"))
    })
}
