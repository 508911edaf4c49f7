//! Command R (Cohere, 2024), first and second version: LayerNorm without bias, attention and MLP in parallel behind one norm,
//! interleaved rotary pairs, scaled logits. In the second version three of four blocks have a window, and the fourth has no
//! positions; it also comes with a mixture of experts, and with rotary pairs by halves (Compass).

use serde_json::json;

use super::interleaved::rotated;
use super::{Family, LayerNames, TensorNames, deinterleaved_order, llama, moe};
use crate::Error;
use crate::config::{
    AlternateAttention, BlockKind, BlockSet, DecoderConfig, ExpertsConfig, NormKind, Positions,
    QueryKeyNorms, RawConfig, RotaryDefaults, Scores,
};

pub(crate) const FAMILY: Family =
    Family { model_types: &["cohere", "cohere2", "cohere2_moe", "cohere_compass_text"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    match raw.text_or("model_type", "")? {
        "cohere2_moe" => mixture(raw),
        "cohere_compass_text" => compass(raw),
        _ => dense(raw),
    }?
    .validate(raw)
}

fn dense(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let second = raw.text_or("model_type", "")? == "cohere2";
    let own_norms = !second && raw.flag_or("use_qk_norm", false)?;
    let theta = if second { 10_000.0 } else { 500_000.0 };
    let base = llama::base(raw, RotaryDefaults { theta, ..RotaryDefaults::default() })?;
    let alternate = if second {
        let period = raw.size_or("sliding_window_pattern", 4)?;
        Some(AlternateAttention {
            blocks: raw.sliding_blocks(base.layers, BlockSet::AllButEach { period })?,
            positions: base.positions.clone(),
            sliding_window: Some(raw.size_or("sliding_window", 4096)?),
        })
    } else {
        None
    };
    Ok(DecoderConfig {
        family: "cohere",
        norm: NormKind::LayerNorm,
        norm_eps: raw.float_or("layer_norm_eps", 1e-5)?,
        block: BlockKind::Parallel,
        shared_norm: true,
        positions: if second { Positions::None } else { base.positions },
        alternate,
        query_key_norms: own_norms.then_some(QueryKeyNorms::EachHead),
        norm_bias: false,
        logit_scale: Some(raw.float_or("logit_scale", 0.0625)?),
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        ..base
    })
}

/// Blocks without a window have positions if they are dense and `prefix_dense_sliding_window_pattern` is 1.
fn mixture(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[("head_dim", json!(128))]);
    let first = raw.index_or("first_k_dense_replace", 0)?;
    let prefix = raw.size_or("prefix_dense_sliding_window_pattern", 1)?;
    let period = raw.size_or("sliding_window_pattern", 4)?;
    let layers = raw.size("num_hidden_layers")?;
    let windowed = |layer: usize| {
        let (place, period) = if layer < first { (layer, prefix) } else { (layer - first, period) };
        !(place + 1).is_multiple_of(period)
    };
    let dense_blocks = moe::dense_blocks(raw, layers, first)?;
    let blocks = raw.sliding_blocks(layers, BlockSet::Marked((0..layers).map(windowed).collect()))?;
    if prefix == 1 && dense_blocks.iter().any(|layer| !blocks.contains(*layer)) {
        return Err(raw.problem(
            "mlp_layer_types",
            "has dense blocks without a window, whose positions differ from those of other such blocks; not implemented",
        ));
    }
    let intermediate_size = raw.size("intermediate_size")?;
    let shared = moe::shared(raw, "num_shared_experts", 0, intermediate_size)?;
    let half = match raw.text_or("shared_expert_combination_strategy", "average")? {
        "average" => shared.is_some(),
        "sum" => false,
        other => {
            let problem = format!("is {other:?}; implemented: average, sum");
            return Err(raw.problem("shared_expert_combination_strategy", problem));
        }
    };
    let scale = if half { 0.5 } else { 1.0 };
    let (scores, normalized) = match raw.text_or("expert_selection_fn", "softmax")? {
        "softmax" => (Scores::Softmax, true),
        "sigmoid" => (Scores::SigmoidOfLogits, raw.flag_or("norm_topk_prob", true)?),
        other => {
            let problem = format!("is {other:?}; implemented: softmax, sigmoid");
            return Err(raw.problem("expert_selection_fn", problem));
        }
    };
    let experts = ExpertsConfig {
        count: raw.size_or("num_experts", 8)?,
        chosen: raw.size_or("num_experts_per_tok", 2)?,
        scores,
        normalized,
        scale,
        intermediate_size,
        shared_intermediate_size: shared,
        shared_scale: scale,
        dense_blocks,
        ..ExpertsConfig::default()
    };
    let base = dense(raw)?;
    let rotary = llama::base(raw, RotaryDefaults::default())?.positions;
    let alternate = AlternateAttention {
        blocks,
        positions: rotary,
        sliding_window: Some(raw.size_or("sliding_window", 4096)?),
    };
    let norm = match raw.get("rms_norm_eps") {
        Some(_) => (NormKind::RmsNorm, raw.float_or("rms_norm_eps", 1e-6)?),
        None => (base.norm, base.norm_eps),
    };
    Ok(DecoderConfig {
        norm: norm.0,
        norm_eps: norm.1,
        positions: Positions::None,
        alternate: Some(alternate),
        intermediate_size: match raw.get("prefix_dense_intermediate_size") {
            Some(_) => raw.size("prefix_dense_intermediate_size")?,
            None => intermediate_size,
        },
        experts: Some(experts),
        ..base
    })
}

/// Compass (Cohere, 2026), its text part: rotary settings by the kind of block, of which one may have none.
fn compass(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    const KEY: &str = "rope_parameters";
    let raw = &raw.with_defaults(&[("head_dim", json!(128))]);
    let layers = raw.size("num_hidden_layers")?;
    let blocks = raw.sliding_blocks(layers, BlockSet::Marked(Vec::new()))?;
    let rotary = |kind: &str| -> Result<Positions, Error> {
        let parameters = raw.get(KEY).and_then(|parameters| parameters.get(kind));
        let used = (0..layers).any(|layer| blocks.contains(layer) == (kind == "sliding_attention"));
        match parameters {
            None if used => Err(raw.problem(KEY, format!("has no settings of {kind}"))),
            None => Ok(Positions::None),
            Some(parameters) if parameters.is_null() => Ok(Positions::None),
            Some(_) => Ok(Positions::Rotary(llama::rotary_of(raw, kind, RotaryDefaults::default())?)),
        }
    };
    let (positions, windowed) = (rotary("full_attention")?, rotary("sliding_attention")?);
    let base = dense(&raw.without(KEY))?;
    let alternate = AlternateAttention {
        blocks,
        positions: windowed,
        sliding_window: Some(raw.size_or("sliding_window", 4096)?),
    };
    Ok(DecoderConfig {
        family: "cohere_compass",
        query_key_norms: None,
        positions,
        alternate: Some(alternate),
        logit_scale: match raw.get("logit_scale") {
            Some(_) => Some(raw.float_or("logit_scale", 1.0)?),
            None => None,
        },
        ..base
    })
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| {
        if config.family == "cohere_compass" {
            return LayerNames { mlp_norm: None, ..llama::layer(index, &config) };
        }
        let plain = rotated(index, &config);
        LayerNames {
            mlp_norm: None,
            query_key_order: Some(deinterleaved_order(&config)),
            mlp: match &config.experts {
                Some(experts) if experts.in_block(index) => moe::Names::default().of(index, experts),
                _ => plain.mlp,
            },
            ..plain
        }
    })
}
