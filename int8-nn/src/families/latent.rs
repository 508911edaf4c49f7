//! LLaMA with multi-head latent attention: DeepSeek-V2 and V3 (DeepSeek-AI, 2024) and, with their mixture of experts, GLM-4.7
//! Flash (Zhipu, 2026) and Sarvam (2026); without, Youtu-LLM (Tencent, 2025) and MiniCPM3 (OpenBMB, 2024).

use serde_json::{Value, json};

use super::llama::{self, layer};
use super::{Family, LatentNames, LayerNames, TensorNames, moe};
use crate::config::{
    Biases, DecoderConfig, ExpertGroups, ExpertsConfig, LatentAttention, RawConfig, RotaryDefaults, Scores,
};
use crate::weights::{Part, Rows};
use crate::{Error, convert};

pub(crate) const FAMILY: Family = Family {
    model_types: &["deepseek_v2", "deepseek_v3", "glm4_moe_lite", "sarvam_mla", "youtu", "minicpm3"],
    config,
    names,
};

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    match raw.text_or("model_type", "")? {
        "deepseek_v2" => second(raw),
        "glm4_moe_lite" => glm(raw),
        "sarvam_mla" => sarvam(raw),
        "youtu" => youtu(raw),
        "minicpm3" => minicpm(raw),
        _ => third(raw),
    }?
    .validate(raw)
}

/// The keys that all share; sizes of the largest DeepSeek where they are absent.
pub(super) fn base(raw: &RawConfig, interleaved: bool) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("kv_lora_rank", json!(512)),
        ("q_lora_rank", json!(1536)),
        ("qk_rope_head_dim", json!(64)),
        ("qk_nope_head_dim", json!(128)),
        ("v_head_dim", json!(128)),
    ]);
    let latent = LatentAttention::read(raw, interleaved)?;
    let raw = &raw.without("head_dim").with_defaults(&[("head_dim", json!(latent.rotated))]);
    let base = llama::base(raw, RotaryDefaults { partial: true, ..RotaryDefaults::default() })?;
    if base.rotated_dims() != latent.rotated {
        return Err(raw.problem("partial_rotary_factor", "is not 1; `qk_rope_head_dim` is rotated whole"));
    }
    if base.kv_heads != base.heads {
        return Err(raw.problem(
            "num_key_value_heads",
            format!("is {}; latent attention has as many as queries, {}", base.kv_heads, base.heads),
        ));
    }
    Ok(DecoderConfig {
        head_size: latent.head_size(),
        attention_divisor: Some(latent.divisor(raw)?),
        latent: Some(latent),
        ..base
    })
}

fn interleaved(raw: &RawConfig) -> Result<bool, Error> {
    raw.flag_or("rope_interleave", true)
}

/// The configuration with `num_local_experts` and `num_experts` as the names that they stand for.
fn experts_renamed(raw: &RawConfig) -> RawConfig {
    raw.renamed("num_local_experts", "n_routed_experts").renamed("num_experts", "n_routed_experts")
}

fn second(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &experts_renamed(raw).with_defaults(&[
        ("n_routed_experts", json!(64)),
        ("moe_intermediate_size", json!(1407)),
        ("n_shared_experts", json!(2)),
    ]);
    if raw.flag_or("mlp_bias", false)? {
        return Err(
            raw.problem("mlp_bias", "is true; dense blocks with biases beside experts are not implemented")
        );
    }
    let groups = match raw.text_or("topk_method", "greedy")? {
        "greedy" => None,
        "group_limited_greedy" => {
            Some(ExpertGroups { count: raw.size("n_group")?, chosen: raw.size("topk_group")?, best: 1 })
        }
        other => {
            let problem = format!("is {other:?}; implemented: greedy, group_limited_greedy");
            return Err(raw.problem("topk_method", problem));
        }
    };
    let experts = ExpertsConfig {
        normalized: false,
        scores: Scores::Softmax,
        correction: false,
        groups,
        ..moe::deepseek(raw)?
    };
    Ok(DecoderConfig { family: "deepseek_v2", experts: Some(experts), ..base(raw, true)? })
}

fn third(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &experts_renamed(raw).with_defaults(&[
        ("n_routed_experts", json!(256)),
        ("num_experts_per_tok", json!(8)),
        ("n_group", json!(8)),
        ("topk_group", json!(4)),
        ("moe_intermediate_size", json!(2048)),
        ("first_k_dense_replace", json!(3)),
        ("routed_scaling_factor", json!(2.5)),
        ("max_position_embeddings", json!(4096)),
    ]);
    Ok(DecoderConfig {
        family: "deepseek_v3",
        experts: Some(moe::deepseek(raw)?),
        ..base(raw, interleaved(raw)?)?
    })
}

fn sarvam(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.renamed("num_shared_experts", "n_shared_experts").with_defaults(&[
        ("q_lora_rank", Value::Null),
        ("n_group", json!(1)),
        ("topk_group", json!(1)),
        ("first_k_dense_replace", json!(1)),
    ]);
    Ok(DecoderConfig { family: "sarvam_mla", ..third(raw)? })
}

fn glm(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.renamed("num_local_experts", "n_routed_experts").with_defaults(&[
        ("rms_norm_eps", json!(1e-5)),
        ("n_routed_experts", json!(64)),
        ("num_experts_per_tok", json!(4)),
        ("moe_intermediate_size", json!(1536)),
        ("routed_scaling_factor", json!(1.8)),
        ("q_lora_rank", json!(768)),
        ("qk_nope_head_dim", json!(192)),
        ("v_head_dim", json!(256)),
        ("max_position_embeddings", json!(202_752)),
    ]);
    let base = base(raw, interleaved(raw)?)?;
    let dense_blocks = moe::dense_blocks(raw, base.layers, 1)?;
    let experts = ExpertsConfig { dense_blocks, ..moe::deepseek(raw)? };
    Ok(DecoderConfig { family: "glm4_moe_lite", experts: Some(experts), ..base })
}

fn youtu(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw
        .with_defaults(&[("tie_word_embeddings", json!(true)), ("max_position_embeddings", json!(131_072))]);
    Ok(DecoderConfig { family: "youtu", ..base(raw, interleaved(raw)?)? })
}

fn minicpm(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    const VALUE: &str = "v_head_dim";
    let (hidden, heads) = (raw.size("hidden_size")?, raw.size("num_attention_heads")?);
    let raw = &if raw.get(VALUE).is_none() { raw.without(VALUE) } else { raw.clone() };
    let raw = &raw.with_defaults(&[
        ("kv_lora_rank", json!(256)),
        ("q_lora_rank", json!(768)),
        ("qk_nope_head_dim", json!(64)),
        ("qk_rope_head_dim", json!(32)),
        (VALUE, json!(hidden / heads)),
        ("rms_norm_eps", json!(1e-5)),
        ("tie_word_embeddings", json!(true)),
        ("max_position_embeddings", json!(32768)),
    ]);
    let base = base(raw, false)?;
    let branch = match raw.is_null("scale_depth") {
        true => None,
        false => {
            let depth = convert::f64_from(base.layers).sqrt();
            Some(convert::f32_from(raw.positive_or("scale_depth", 1.4)? / depth))
        }
    };
    let logits = match raw.is_null("dim_model_base") {
        true => None,
        false => {
            let width = raw.positive_or("dim_model_base", 256.0)?;
            Some(convert::f32_from(width / convert::f64_from(hidden)))
        }
    };
    let mlp = raw.flag_or("mlp_bias", false)?;
    Ok(DecoderConfig {
        family: "minicpm3",
        biases: Biases { up: mlp, down: mlp, ..base.biases },
        embedding_scale: Some(raw.float_or("scale_emb", 12.0)?),
        residual_multiplier: branch,
        logit_scale: logits,
        ..base
    })
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| {
        let plain = layer(index, &config);
        LayerNames {
            qkv: Vec::new(),
            latent: config.latent.map(|latent| latent_names(index, latent, config.heads)),
            mlp: match &config.experts {
                Some(experts) if experts.in_block(index) => moe::Names::default().of(index, experts),
                _ => plain.mlp,
            },
            ..plain
        }
    })
}

/// In heads of queries the rotated dimensions come first, unlike where they are stored.
pub(super) fn latent_names(index: usize, latent: LatentAttention, heads: usize) -> LatentNames {
    let block = llama::module(index);
    let LatentAttention { kv_rank, rotated, plain, .. } = latent;
    let place = move |dim: usize| match latent.interleaved {
        true => 2 * (dim % (rotated / 2)) + dim / (rotated / 2),
        false => dim,
    };
    let rotated_dims = move |first: usize| (0..rotated).map(move |dim| first + place(dim));
    let of_head = |head: usize| {
        let first = head * latent.key();
        rotated_dims(first + plain).chain(first..first + plain)
    };
    let gather = |name: &str, rows: Vec<usize>, of| block.part(name).rows(Rows::Gather { rows, of });
    let query = match latent.query_rank {
        Some(_) => "self_attn.q_b_proj",
        None => "self_attn.q_proj",
    };
    let kv = |rows| gather("self_attn.kv_a_proj_with_mqa", rows, kv_rank + rotated);
    LatentNames {
        query_down: latent.query_rank.map(|_| block.part("self_attn.q_a_proj")),
        query_norm: latent.query_rank.map(|_| block.name("self_attn.q_a_layernorm")),
        query: gather(query, (0..heads).flat_map(of_head).collect(), heads * latent.key()),
        kv_down: kv((0..kv_rank).collect()),
        key: kv(rotated_dims(kv_rank).collect()),
        kv_norm: block.name("self_attn.kv_a_layernorm"),
        kv_up: Part::new(&block.name("self_attn.kv_b_proj")),
    }
}
