//! LLaMA with multi-head latent attention: DeepSeek-V2 and V3 (DeepSeek-AI, 2024) and, with their mixture of experts, GLM-4.7
//! Flash (Zhipu, 2026) and Sarvam (2026); without, Youtu-LLM (Tencent, 2025) and MiniCPM3 (OpenBMB, 2024).

use serde_json::{Value, json};

use super::llama::{self, layer};
use super::{Family, IndexNames, LatentNames, LayerNames, Module, TensorNames, moe};
use crate::config::{
    Biases, BlockSet, DecoderConfig, ExpertGroups, ExpertsConfig, IndexShape, Indexer, LatentAttention,
    RawConfig, RotaryDefaults, Scores,
};
use crate::weights::{Part, Rows};
use crate::{Error, convert};

pub(crate) const FAMILY: Family = Family {
    model_types: &[
        "deepseek_v2",
        "deepseek_v3",
        "glm4_moe_lite",
        "sarvam_mla",
        "youtu",
        "minicpm3",
        "axk1",
        "deepseek_v32",
        "glm_moe_dsa",
        "longcat_flash",
    ],
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
        "axk1" => axk(raw),
        "deepseek_v32" => sparse(raw),
        "longcat_flash" => longcat(raw),
        "glm_moe_dsa" => sparse_glm(raw),
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

/// LongCat-Flash (Meituan, 2025): a layer of the file is two blocks; experts see the input of the first one's MLP and are added
/// behind the second, and some of them return their input.
fn longcat(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let layers = raw.size("num_layers")?;
    let raw = &raw.without("num_hidden_layers").with_defaults(&[
        ("num_hidden_layers", json!(2 * layers)),
        ("rope_theta", json!(10_000_000.0)),
        ("rms_norm_eps", json!(1e-5)),
        ("max_position_embeddings", json!(131_072)),
    ]);
    let raw = &raw
        .renamed("ffn_hidden_size", "intermediate_size")
        .renamed("expert_ffn_hidden_size", "moe_intermediate_size")
        .renamed("moe_topk", "num_experts_per_tok");
    if raw.flag_or("router_bias", false)? {
        return Err(raw.problem("router_bias", "is true, which is not implemented"));
    }
    let base = base(raw, true)?;
    let Some(latent) = base.latent else { return Ok(base) };
    let Some(rank) = latent.query_rank else {
        return Err(raw.problem("q_lora_rank", "is null; this family has a latent of queries"));
    };
    let [hidden, rank, kv_rank] = [base.hidden_size, rank, latent.kv_rank].map(convert::f64_from);
    let experts = ExpertsConfig {
        count: raw.size_or("n_routed_experts", 512)?,
        identities: raw.index_or("zero_expert_num", 256)?,
        chosen: raw.size_or("num_experts_per_tok", 12)?,
        correction: true,
        scale: raw.float_or("routed_scaling_factor", 6.0)?,
        intermediate_size: raw.size_or("moe_intermediate_size", 2048)?,
        dense_blocks: (0..base.layers).filter(|block| block % 2 == 1).collect(),
        ..ExpertsConfig::default()
    };
    Ok(DecoderConfig {
        family: "longcat_flash",
        // Queries are multiplied by √(hidden/rank).
        attention_divisor: base.attention_divisor.map(|divisor| divisor * rank / hidden),
        latent_scale: Some(convert::f32_from((hidden / kv_rank).sqrt())),
        experts_ahead: true,
        experts: Some(experts),
        ..base
    })
}

/// DeepSeek-V3.2 (DeepSeek-AI, 2025): attention to selected keys.
fn sparse(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw =
        &raw.with_defaults(&[("max_position_embeddings", json!(163_840)), ("index_n_heads", json!(64))]);
    let base = third(&raw.without("rope_interleave"))?;
    let dense_blocks = moe::dense_blocks(raw, base.layers, raw.index_or("first_k_dense_replace", 3)?)?;
    let experts = base.experts.map(|experts| ExpertsConfig { dense_blocks, ..experts });
    let all = BlockSet::From { first: 0 };
    Ok(DecoderConfig { family: "deepseek_v32", indexer: Some(indexer(raw, all, false)?), experts, ..base })
}

/// GLM-5 (Zhipu, 2026): the same, and some blocks see what a block before them selected.
fn sparse_glm(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("rms_norm_eps", json!(1e-5)),
        ("n_group", json!(1)),
        ("topk_group", json!(1)),
        ("q_lora_rank", json!(2048)),
        ("qk_nope_head_dim", json!(192)),
        ("v_head_dim", json!(256)),
        ("max_position_embeddings", json!(202_752)),
        ("index_n_heads", json!(32)),
    ]);
    let base = sparse(raw)?;
    let layers = base.layers;
    let marks = match raw.marks("indexer_types", layers, "full", "shared")? {
        Some(marks) => marks,
        None if raw.get("index_topk_pattern").is_some() => {
            let problem = "is not implemented; write it as a list `indexer_types` of full and shared";
            return Err(raw.problem("index_topk_pattern", problem));
        }
        None => {
            let (period, offset) =
                (raw.size_or("index_topk_freq", 1)?, raw.index_or("index_skip_topk_offset", 2)?);
            (0..layers).map(|layer| (layer + 1).saturating_sub(offset).is_multiple_of(period)).collect()
        }
    };
    if marks.first() == Some(&false) {
        return Err(
            raw.problem("indexer_types", "begins with a shared layer, before which none has selected")
        );
    }
    Ok(DecoderConfig {
        family: "glm_moe_dsa",
        indexer: Some(indexer(raw, BlockSet::Marked(marks), true)?),
        ..base
    })
}

fn indexer(raw: &RawConfig, blocks: BlockSet, interleaved: bool) -> Result<Indexer, Error> {
    if let Some(kinds) = raw.get("layer_types").and_then(Value::as_array)
        && kinds.iter().any(|kind| kind.as_str() != Some("indexed_attention"))
    {
        return Err(
            raw.problem("layer_types", "has others than indexed_attention, which are not implemented")
        );
    }
    let shape = IndexShape {
        heads: raw.size_or("index_n_heads", 64)?,
        size: raw.size_or("index_head_dim", 128)?,
        chosen: raw.size_or("index_topk", 2048)?,
    };
    if shape.size < raw.size_or("qk_rope_head_dim", 64)? {
        return Err(raw.problem("index_head_dim", "is less than `qk_rope_head_dim`"));
    }
    Ok(Indexer { shape, blocks, interleaved })
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

/// A.X K1 (SK Telecom, 2026): the output of the experts is normalised.
fn axk(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.renamed("num_local_experts", "n_routed_experts").with_defaults(&[
        ("n_routed_experts", json!(192)),
        ("num_experts_per_tok", json!(8)),
        ("n_group", json!(8)),
        ("topk_group", json!(4)),
        ("moe_intermediate_size", json!(2048)),
        ("routed_scaling_factor", json!(2.5)),
        ("max_position_embeddings", json!(32768)),
    ]);
    let base = base(raw, interleaved(raw)?)?;
    let dense_blocks = match raw.get("mlp_layer_types") {
        Some(_) => moe::dense_blocks(raw, base.layers, 0)?,
        None => {
            let first = raw.index_or("first_k_dense_replace", 1)?;
            let period = raw.size_or("moe_layer_freq", 1)?;
            (0..base.layers).filter(|layer| *layer < first || !layer.is_multiple_of(period)).collect()
        }
    };
    let experts = ExpertsConfig { dense_blocks, ..moe::deepseek(raw)? };
    Ok(DecoderConfig { family: "axk1", branch_norms: true, experts: Some(experts), ..base })
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
    if config.experts_ahead {
        return llama::tensors(move |index| longcat_layer(index, &config));
    }
    llama::tensors(move |index| {
        let plain = layer(index, &config);
        let sparse = config.experts.as_ref().is_some_and(|experts| experts.in_block(index));
        let norm = || llama::module(index).name("post_mlp_layernorm");
        LayerNames {
            mlp_branch_norm: (config.branch_norms && sparse).then(norm),
            qkv: Vec::new(),
            latent: config.latent.map(|latent| LatentNames {
                index: index_names(index, latent, &config),
                ..latent_names(index, latent, config.heads)
            }),
            mlp: match &config.experts {
                Some(experts) if experts.in_block(index) => moe::Names::default().of(index, experts),
                _ => plain.mlp,
            },
            ..plain
        }
    })
}

/// Block `index` of LongCat-Flash, half a layer of the file.
fn longcat_layer(index: usize, config: &DecoderConfig) -> LayerNames {
    let (block, half) = (llama::module(index / 2), index % 2);
    let attention = format!("self_attn.{half}");
    let mlp = Module::new(block.name(&format!("mlps.{half}")));
    let names = moe::Names {
        router: "router.classifier",
        correction: "mlp.router.e_score_correction_bias",
        ..moe::Names::default()
    };
    let experts = config.experts.as_ref().filter(|_| half == 0);
    LayerNames {
        latent: config.latent.map(|latent| latent_names_in(&block, &attention, latent, config.heads)),
        shortcut: experts.map(|experts| names.experts(index / 2, experts)),
        adds_shortcut: half == 1,
        ..LayerNames::new(
            Vec::new(),
            block.part(&format!("{attention}.o_proj")),
            mlp.mlp(["gate_proj", "up_proj"], "down_proj"),
        )
    }
    .norms(
        block.name(&format!("input_layernorm.{half}")),
        block.name(&format!("post_attention_layernorm.{half}")),
    )
}

/// In heads of queries the rotated dimensions come first, unlike where they are stored.
pub(super) fn latent_names(index: usize, latent: LatentAttention, heads: usize) -> LatentNames {
    latent_names_in(&llama::module(index), "self_attn", latent, heads)
}

fn latent_names_in(layer: &Module, attention: &str, latent: LatentAttention, heads: usize) -> LatentNames {
    let block = Module::new(layer.name(attention));
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
        Some(_) => "q_b_proj",
        None => "q_proj",
    };
    let kv = |rows| gather("kv_a_proj_with_mqa", rows, kv_rank + rotated);
    LatentNames {
        query_down: latent.query_rank.map(|_| block.part("q_a_proj")),
        query_norm: latent.query_rank.map(|_| block.name("q_a_layernorm")),
        query: gather(query, (0..heads).flat_map(of_head).collect(), heads * latent.key()),
        kv_down: kv((0..kv_rank).collect()),
        key: kv(rotated_dims(kv_rank).collect()),
        kv_norm: block.name("kv_a_layernorm"),
        kv_up: Part::new(&block.name("kv_b_proj")),
        index: None,
    }
}

/// The indexer of block `index`, if it has one: its rotated dimensions come first, as stored.
fn index_names(index: usize, latent: LatentAttention, config: &DecoderConfig) -> Option<IndexNames> {
    let indexer = config.indexer.as_ref().filter(|indexer| indexer.blocks.contains(index))?;
    let IndexShape { heads, size, .. } = indexer.shape;
    let half = latent.rotated / 2;
    let place = |dim: usize| match indexer.interleaved && dim < latent.rotated {
        true => 2 * (dim % half) + dim / half,
        false => dim,
    };
    let order: Vec<usize> = (0..size).map(place).collect();
    let module = Module::new(llama::module(index).name("self_attn.indexer"));
    let gather = |name: &str, heads: usize| {
        let rows = (0..heads).flat_map(|head| order.iter().map(move |place| head * size + place)).collect();
        module.part(name).rows(Rows::Gather { rows, of: heads * size })
    };
    Some(IndexNames {
        query: gather("wq_b", heads),
        key: gather("wk", 1),
        key_norm: module.name("k_norm"),
        weights: module.part("weights_proj"),
        order,
    })
}
