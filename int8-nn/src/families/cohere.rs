//! Command R (Cohere, 2024), first and second version: LayerNorm without bias, attention and MLP in parallel behind one norm,
//! interleaved rotary pairs, scaled logits. In the second version three of four blocks have a window, and the fourth has no
//! positions.

use super::interleaved::rotated;
use super::{Family, LayerNames, TensorNames, deinterleaved_order, llama};
use crate::Error;
use crate::config::{
    AlternateAttention, BlockKind, BlockSet, DecoderConfig, NormKind, Positions, QueryKeyNorms, RawConfig,
    RotaryDefaults,
};

pub(crate) const FAMILY: Family = Family { model_types: &["cohere", "cohere2"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
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
    DecoderConfig {
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
    }
    .validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| LayerNames {
        mlp_norm: None,
        query_key_order: Some(deinterleaved_order(&config)),
        ..rotated(index, &config)
    })
}
