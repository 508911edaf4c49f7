//! Gemma 3n (Google, 2025), its text part: several residual streams with alternating updates, LAuReL, an embedding for each block,
//! sparse gates in the first blocks, and keys and values that the last blocks share.

use serde_json::Value;

use super::llama::{self, layer};
use super::{Family, InputNames, LayerInputNames, LayerNames, Module, StreamLayerNames, TensorNames, gemma};
use crate::Error;
use crate::config::{
    AlternateAttention, BlockSet, DecoderConfig, LayerInputs, NormKind, Positions, QueryKeyNorms, RawConfig,
    Streams, normal_quantile,
};
use crate::convert;

pub(crate) const FAMILY: Family = Family { model_types: &["gemma3n", "gemma3n_text"], config, names };

fn config(whole: &RawConfig) -> Result<DecoderConfig, Error> {
    // The text part of a multimodal model.
    let raw = &whole.section("text_config")?;
    let hidden_size = raw.size_or("hidden_size", 2048)?;
    let layers = raw.size_or("num_hidden_layers", 35)?;
    let head_size = raw.size_or("head_dim", 256)?;
    if raw.index_or("altup_active_idx", 0)? != 0 {
        return Err(raw.problem("altup_active_idx", "is not 0, which is not implemented"));
    }
    let blocks = raw.sliding_blocks(layers, BlockSet::AllButEach { period: 5 })?;
    let (full, sliding) = gemma::gemma3_rotary(raw, head_size)?;
    let intermediate_size = intermediate_size(raw, layers)?;
    let vocab_size = raw.size_or("vocab_size", 262_400)?;
    DecoderConfig {
        family: "gemma3n",
        vocab_size,
        hidden_size,
        layers,
        heads: raw.size_or("num_attention_heads", 8)?,
        kv_heads: raw.size_or("num_key_value_heads", 2)?,
        head_size,
        intermediate_size,
        max_positions: raw.size_or("max_position_embeddings", 32768)?,
        norm: NormKind::RmsNorm,
        norm_eps: raw.float_or("rms_norm_eps", 1e-6)?,
        branch_norms: true,
        query_key_norms: Some(QueryKeyNorms::PerHead),
        value_norms: true,
        positions: Positions::Rotary(full),
        sources: sources(raw, layers, &blocks, 15)?,
        alternate: Some(AlternateAttention {
            blocks,
            positions: Positions::Rotary(sliding),
            sliding_window: Some(raw.size_or("sliding_window", 512)?),
        }),
        attention_divisor: Some(1.0),
        logit_softcap: match raw.is_null("final_logit_softcapping") {
            true => None,
            false => Some(raw.float_or("final_logit_softcapping", 30.0)?),
        },
        biases: crate::config::Biases::of(raw.flag_or("attention_bias", false)?, false),
        activation: raw.activation("hidden_activation", "gelu_pytorch_tanh")?,
        gated_mlp: true,
        sparse_gates: sparse_gates(raw, layers)?,
        layer_inputs: Some(LayerInputs {
            width: raw.size_or("hidden_size_per_layer_input", 256)?,
            vocabulary: raw.size_or("vocab_size_per_layer_input", 262_144)?,
        }),
        streams: Some(Streams {
            count: raw.size_or("altup_num_inputs", 4)?,
            rank: raw.size_or("laurel_rank", 64)?,
            scales_output: raw.flag_or("altup_correct_scale", true)?,
        }),
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

/// A number, or a list of the same number for all layers.
fn intermediate_size(raw: &RawConfig, layers: usize) -> Result<usize, Error> {
    const KEY: &str = "intermediate_size";
    let Some(Value::Array(sizes)) = raw.get(KEY) else { return raw.size_or(KEY, 16384) };
    let first =
        sizes.first().filter(|first| sizes.len() == layers && sizes.iter().all(|size| size == *first));
    let size = first.and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
    size.filter(|size| *size > 0).ok_or_else(|| {
        raw.problem(
            KEY,
            format!("is no list of {layers} equal numbers; widths that differ are not implemented"),
        )
    })
}

/// For each block that whose keys and values it attends to: of the last `num_kv_shared_layers` the last of the others of its kind.
pub(super) fn sources(
    raw: &RawConfig,
    layers: usize,
    sliding: &BlockSet,
    default: usize,
) -> Result<Vec<usize>, Error> {
    const KEY: &str = "num_kv_shared_layers";
    let shared = raw.index_or(KEY, default)?;
    if shared == 0 {
        return Ok(Vec::new());
    }
    let own = layers.saturating_sub(shared);
    let source = |layer: usize| {
        let same = |other: &usize| sliding.contains(*other) == sliding.contains(layer);
        if layer < own { Some(layer) } else { (0..own).rev().find(same) }
    };
    let sources: Option<Vec<usize>> = (0..layers).map(source).collect();
    sources.ok_or_else(|| {
        raw.problem(
            KEY,
            format!("is {shared}; of {layers} layers none has the keys that one of the last attends to"),
        )
    })
}

/// The blocks of `activation_sparsity_pattern` that are not 0, which all have the same share; and its quantile of the normal
/// distribution.
fn sparse_gates(raw: &RawConfig, layers: usize) -> Result<Option<(BlockSet, f32)>, Error> {
    const KEY: &str = "activation_sparsity_pattern";
    let shares = match raw.get(KEY) {
        None => {
            let sparse = if layers > 10 { 10 } else { 0 };
            (0..layers).map(|layer| if layer < sparse { 0.95 } else { 0.0 }).collect()
        }
        Some(Value::Array(list)) if list.len() == layers => list
            .iter()
            .map(|share| share.as_f64().filter(|share| (0.0..1.0).contains(share)))
            .collect::<Option<Vec<f64>>>()
            .ok_or_else(|| raw.problem(KEY, "has something else than numbers from 0 to below 1"))?,
        Some(other) => {
            return Err(raw.problem(KEY, format!("is {other}; expected {layers} numbers, one a layer")));
        }
    };
    let mut positive = shares.iter().copied().filter(|share| *share > 0.0);
    let Some(share) = positive.next() else { return Ok(None) };
    if positive.any(|other| other != share) {
        return Err(raw.problem(KEY, "has several numbers besides 0, which is not implemented"));
    }
    let blocks = BlockSet::Marked(shares.iter().map(|share| *share > 0.0).collect());
    Ok(Some((blocks, convert::f32_from(normal_quantile(share)))))
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    let layer = move |index| {
        let plain = gemma::branch_normed(layer(index, &config), index);
        let mixing = Module::new(llama::module(index).name("altup"));
        let low = Module::new(llama::module(index).name("laurel"));
        let own = config.source(index) == index;
        LayerNames {
            qkv: plain.qkv.into_iter().take(if own { 3 } else { 1 }).collect(),
            streams: Some(StreamLayerNames {
                router: mixing.part("modality_router"),
                router_norm: mixing.name("router_norm"),
                prediction: mixing.name("prediction_coefs"),
                correction: mixing.name("correction_coefs"),
                output_scale: Some(mixing.name("correct_output_scale")),
                low: [low.part("linear_left"), low.part("linear_right")],
                low_norm: low.name("post_laurel_norm"),
            }),
            layer_input: Some(layer_input(index)),
            ..plain
        }
    };
    TensorNames {
        roots: gemma::ROOTS,
        layer_inputs: Some(INPUTS),
        streams: Some(["altup_projections", "altup_unembed_projections"]),
        ..llama::tensors(layer)
    }
}

/// What a model has for all blocks' embeddings.
pub(super) const INPUTS: InputNames = InputNames {
    table: "embed_tokens_per_layer",
    projection: "per_layer_model_projection",
    norm: "per_layer_projection_norm",
};

/// A block's own embedding.
pub(super) fn layer_input(index: usize) -> LayerInputNames {
    let block = llama::module(index);
    LayerInputNames {
        gate: block.part("per_layer_input_gate"),
        projection: block.part("per_layer_projection"),
        norm: block.name("post_per_layer_input_norm"),
    }
}
