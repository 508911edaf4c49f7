//! Gemma 4 (Google, 2026), its text part: blocks without a window have wider heads, of which a part turns, and may use keys as
//! values; an embedding for each block, keys and values that the last blocks share, and experts beside the MLP, each in some sizes.

use serde_json::{Value, json};

use super::llama::{self, layer};
use super::{BesideNames, ExpertNames, Family, LayerNames, TensorNames, gemma, gemma3n};
use crate::Error;
use crate::config::{
    AlternateAttention, Biases, BlockSet, DecoderConfig, ExpertsConfig, HeadShape, LayerInputs, NormKind,
    Positions, QueryKeyNorms, RawConfig, Rotary, RotaryDefaults,
};
use crate::convert;

pub(crate) const FAMILY: Family = Family {
    model_types: &["gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"],
    config,
    names,
};

fn config(whole: &RawConfig) -> Result<DecoderConfig, Error> {
    const BIDIRECTIONAL: &str = "use_bidirectional_attention";
    let unified = whole.text_or("model_type", "")?.starts_with("gemma4_unified");
    // The text part of a multimodal model.
    let raw = &whole.section("text_config")?;
    if raw.get(BIDIRECTIONAL).and_then(Value::as_str) == Some("all") {
        return Err(
            raw.problem(BIDIRECTIONAL, "is \"all\", which makes an encoder; only decoders are supported")
        );
    }
    let hidden_size = raw.size_or("hidden_size", 2304)?;
    let layers = raw.size_or("num_hidden_layers", 30)?;
    let usual = HeadShape {
        heads: raw.size_or("num_attention_heads", 8)?,
        kv_heads: raw.size_or("num_key_value_heads", 4)?,
        head_size: raw.size_or("head_dim", 256)?,
    };
    let sliding = raw.sliding_blocks(layers, BlockSet::AllButEach { period: 6 })?;
    // transformers makes the last one full, whatever the file says.
    let marks = (0..layers).map(|layer| sliding.contains(layer) && layer + 1 < layers).collect();
    let sliding = BlockSet::Marked(marks);
    let full = full_shape(raw, usual, layers, &sliding)?;
    let sources = gemma3n::sources(raw, layers, &sliding, 0)?;
    let intermediate_size = raw.size_or("intermediate_size", 9216)?;
    let shared = (0..layers).map(|layer| sources.get(layer).is_some_and(|source| *source != layer)).collect();
    let wide = raw.flag_or("use_double_wide_mlp", false)?;
    let (of_full, of_sliding) = rotary(raw, full.head_size, usual.head_size)?;
    let width = if unified { 0 } else { raw.index_or("hidden_size_per_layer_input", 256)? };
    let vocabulary = raw.size_or("vocab_size_per_layer_input", 262_144)?;
    let not_sliding = BlockSet::Marked((0..layers).map(|layer| !sliding.contains(layer)).collect());
    let experts = match raw.flag_or("enable_moe_block", false)? && !unified {
        true => Some(ExpertsConfig {
            count: raw.size("num_experts")?,
            chosen: raw.size("top_k_experts")?,
            normalized: true,
            intermediate_size: raw.size("moe_intermediate_size")?,
            ..ExpertsConfig::default()
        }),
        false => None,
    };
    DecoderConfig {
        family: "gemma4",
        values_are_keys: raw.flag_or("attention_k_eq_v", false)?,
        vocab_size: raw.size_or("vocab_size", 262_144)?,
        hidden_size,
        layers,
        heads: usual.heads,
        kv_heads: usual.kv_heads,
        head_size: usual.head_size,
        shapes: (full != usual).then_some((not_sliding, full)),
        intermediate_size,
        wide_mlps: wide.then_some((BlockSet::Marked(shared), 2 * intermediate_size)),
        max_positions: raw.size_or("max_position_embeddings", if unified { 262_144 } else { 131_072 })?,
        norm: NormKind::RmsNorm,
        norm_eps: raw.float_or("rms_norm_eps", 1e-6)?,
        branch_norms: true,
        query_key_norms: Some(QueryKeyNorms::PerHead),
        value_norms: true,
        positions: Positions::Rotary(of_full),
        sources,
        alternate: Some(AlternateAttention {
            blocks: sliding,
            positions: Positions::Rotary(of_sliding),
            sliding_window: Some(raw.size_or("sliding_window", if unified { 1024 } else { 512 })?),
        }),
        attention_divisor: Some(1.0),
        logit_softcap: match raw.get("final_logit_softcapping") {
            Some(_) => Some(raw.float_or("final_logit_softcapping", 30.0)?),
            None => None,
        },
        biases: Biases::of(raw.flag_or("attention_bias", false)?, false),
        activation: raw.activation("hidden_activation", "gelu_pytorch_tanh")?,
        gated_mlp: true,
        layer_inputs: (width > 0).then_some(LayerInputs { width, vocabulary }),
        layer_scalars: true,
        experts_beside: experts.is_some(),
        experts,
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        embedding_size: hidden_size,
        embedding_scale: Some(convert::f32_from(convert::f64_from(hidden_size).sqrt())),
        eos_token_ids: match whole.get("eos_token_id") {
            Some(_) => whole.token_ids("eos_token_id")?,
            None => raw.token_ids("eos_token_id")?,
        },
        ..DecoderConfig::default()
    }
    .validate(raw)
}

/// The heads of blocks without a window: in `per_layer_config`, layer by layer, or else in keys of their own.
fn full_shape(
    raw: &RawConfig,
    usual: HeadShape,
    layers: usize,
    sliding: &BlockSet,
) -> Result<HeadShape, Error> {
    const KEY: &str = "per_layer_config";
    let Some(layered) = raw.get(KEY) else {
        let equal = raw.flag_or("attention_k_eq_v", false)?;
        let own = equal && raw.get("num_global_key_value_heads").is_some();
        return Ok(HeadShape {
            kv_heads: if own { raw.size("num_global_key_value_heads")? } else { usual.kv_heads },
            head_size: raw.size_or("global_head_dim", 512)?,
            ..usual
        });
    };
    let mut found = [None, None];
    for layer in 0..layers {
        let own = layered.get(layer.to_string());
        let part = RawConfig::from_json(
            format!("{}: {KEY}.{layer}", raw.file()),
            own.cloned().unwrap_or(json!({})),
        )?;
        let known = ["head_dim", "num_key_value_heads"];
        if let Some(key) = own
            .and_then(Value::as_object)
            .and_then(|own| own.keys().find(|key| !known.contains(&key.as_str())))
        {
            return Err(part.problem(key, "is not implemented for single layers"));
        }
        let shape = HeadShape {
            kv_heads: part.size_or("num_key_value_heads", usual.kv_heads)?,
            head_size: part.size_or("head_dim", usual.head_size)?,
            ..usual
        };
        let found = &mut found[usize::from(sliding.contains(layer))];
        if found.is_some_and(|found| found != shape) {
            return Err(raw.problem(
                KEY,
                "differs among blocks with, or among blocks without a window; not implemented",
            ));
        }
        *found = Some(shape);
    }
    if found[1].is_some_and(|shape| shape != usual) {
        return Err(raw.problem(KEY, "changes the heads of blocks with a window, which is not implemented"));
    }
    Ok(found[0].unwrap_or(usual))
}

/// Of blocks without and with a window.
fn rotary(raw: &RawConfig, full: usize, sliding: usize) -> Result<(Rotary, Rotary), Error> {
    const KEY: &str = "rope_parameters";
    let default = json!({
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
    });
    let raw = &raw.with_defaults(&[(KEY, default)]);
    let of = |kind: &str, size: usize| {
        let parameters = raw.get(KEY).and_then(|parameters| parameters.get(kind));
        if parameters.is_none_or(Value::is_null) {
            return Err(raw.problem(KEY, format!("has no settings of {kind}")));
        }
        let defaults = RotaryDefaults::default();
        Rotary::read_from(raw, &format!("{KEY}.{kind}"), parameters, size, defaults)
    };
    Ok((of("full_attention", full)?, of("sliding_attention", sliding)?))
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    let layer_inputs = config.layer_inputs.map(|_| gemma3n::INPUTS);
    let layer = move |index| {
        let plain = gemma::branch_normed(layer(index, &config), index);
        let block = llama::module(index);
        let full = matches!(&config.alternate, Some(alternate) if !alternate.blocks.contains(index));
        let mut qkv = plain.qkv;
        if full && config.values_are_keys {
            qkv = block.parts(["self_attn.q_proj", "self_attn.k_proj", "self_attn.k_proj"]);
        }
        if config.source(index) != index {
            qkv.truncate(1);
        }
        LayerNames {
            qkv,
            layer_input: config.layer_inputs.map(|_| gemma3n::layer_input(index)),
            scalar: Some(block.name("layer_scalar")),
            beside: config.experts_beside.then(|| beside(index)),
            ..plain
        }
    };
    TensorNames { roots: gemma::ROOTS, layer_inputs, ..llama::tensors(layer) }
}

fn beside(index: usize) -> BesideNames {
    let block = llama::module(index);
    let norms =
        ["post_feedforward_layernorm_1", "pre_feedforward_layernorm_2", "post_feedforward_layernorm_2"];
    BesideNames {
        router_gain: block.name("router.scale"),
        scales: block.name("router.per_expert_scale"),
        norms: norms.map(|norm| block.name(norm)),
        experts: ExpertNames {
            router: vec![block.name("router.proj")],
            correction: None,
            fused: Some(["experts.gate_up_proj", "experts.down_proj"].map(|name| block.name(name))),
            expert: Box::new(move |expert| {
                let expert = super::Module::new(block.name(&format!("experts.{expert}")));
                (expert.parts(["gate_proj", "up_proj"]), expert.part("down_proj"))
            }),
        },
    }
}
