//! Command R (Cohere, 2024), first and second version: LayerNorm without bias, attention and MLP in parallel behind one norm,
//! interleaved rotary pairs, scaled logits. In the second version three of four blocks have a window, and the fourth has no
//! positions.

use super::llama::{self, layer};
use super::{Family, LayerNames, TensorNames, deinterleaved};
use crate::Error;
use crate::config::{
    AlternateAttention, BlockKind, BlockSet, DecoderConfig, NormKind, Positions, RawConfig, RotaryDefaults,
};

pub(crate) const FAMILY: Family = Family { model_types: &["cohere", "cohere2"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    if raw.flag_or("use_qk_norm", false)? {
        return Err(raw.problem("use_qk_norm", "is true; a norm of its own for each head is not supported"));
    }
    let second = raw.text_or("model_type", "")? == "cohere2";
    let theta = if second { 10_000.0 } else { 500_000.0 };
    let base = llama::base(raw, RotaryDefaults { theta, share: 1.0 })?;
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
        logit_scale: Some(raw.float_or("logit_scale", 0.0625)?),
        tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
        ..base
    }
    .validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| {
        let block = llama::module(index);
        let rotated = |name: &str, heads| deinterleaved(&block.name(name), heads, &config);
        LayerNames {
            mlp_norm: None,
            qkv: vec![
                rotated("self_attn.q_proj", config.heads),
                rotated("self_attn.k_proj", config.kv_heads),
                block.part("self_attn.v_proj"),
            ],
            ..layer(index, &config)
        }
    })
}
