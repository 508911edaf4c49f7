//! StableLM (Bellagente et al., 2024): LLaMA with LayerNorm and partial rotary positions, some of them with attention and MLP
//! in parallel.

use super::llama::{self, layer};
use super::{Family, LayerNames, TensorNames};
use crate::Error;
use crate::config::{Biases, BlockKind, DecoderConfig, NormKind, QueryKeyNorms, RawConfig, RotaryDefaults};

pub(crate) const FAMILY: Family = Family { model_types: &["stablelm"], config, names };

const ROTARY: RotaryDefaults = RotaryDefaults { theta: 10_000.0, share: 0.25, partial: true };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let parallel = raw.flag_or("use_parallel_residual", false)?;
    DecoderConfig {
        family: "stablelm",
        norm: NormKind::LayerNorm,
        norm_eps: raw.float_or("layer_norm_eps", 1e-5)?,
        block: if parallel { BlockKind::Parallel } else { BlockKind::PreNorm },
        shared_norm: parallel,
        query_key_norms: raw.flag_or("qk_layernorm", false)?.then_some(QueryKeyNorms::EachHead),
        biases: Biases { qkv: raw.flag_or("use_qkv_bias", false)?, ..Biases::blocks(false) },
        ..llama::base(raw, ROTARY)?
    }
    .validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| {
        let layer = layer(index, &config);
        let block = llama::module(index);
        let norms = || ["self_attn.q_layernorm", "self_attn.k_layernorm"].map(|norm| block.name(norm));
        LayerNames {
            mlp_norm: layer.mlp_norm.filter(|_| !config.shared_norm),
            query_key_norms: config.query_key_norms.map(|_| norms()),
            ..layer
        }
    })
}
