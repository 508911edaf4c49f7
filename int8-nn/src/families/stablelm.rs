//! StableLM (Bellagente et al., 2024): LLaMA with LayerNorm and partial rotary positions, some of them with attention and MLP
//! in parallel.

use super::llama::{self, layer};
use super::{Family, LayerNames, TensorNames};
use crate::Error;
use crate::config::{BlockKind, DecoderConfig, NormKind, RawConfig, RotaryDefaults};

pub(crate) const FAMILY: Family = Family { model_types: &["stablelm"], config, names };

const ROTARY: RotaryDefaults = RotaryDefaults { theta: 10_000.0, share: 0.25 };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    if raw.flag_or("qk_layernorm", false)? {
        return Err(raw.problem("qk_layernorm", "is true; a norm of its own for each head is not supported"));
    }
    let parallel = raw.flag_or("use_parallel_residual", false)?;
    DecoderConfig {
        family: "stablelm",
        norm: NormKind::LayerNorm,
        norm_eps: raw.float_or("layer_norm_eps", 1e-5)?,
        block: if parallel { BlockKind::Parallel } else { BlockKind::PreNorm },
        shared_norm: parallel,
        ..llama::base(raw, ROTARY)?
    }
    .validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| {
        let layer = layer(index, &config);
        LayerNames { mlp_norm: layer.mlp_norm.filter(|_| !config.shared_norm), ..layer }
    })
}
