//! Phi-1 to Phi-2 (Gunasekar et al., 2023): partial rotary positions, attention and MLP in parallel behind one LayerNorm,
//! tanh-GELU, biases everywhere, the head's included.

use super::llama::{self, layer};
use super::{Family, LayerNames, TensorNames};
use crate::Error;
use crate::config::{Biases, BlockKind, DecoderConfig, NormKind, QueryKeyNorms, RawConfig, RotaryDefaults};

pub(crate) const FAMILY: Family = Family { model_types: &["phi"], config, names };

const ROTARY: RotaryDefaults = RotaryDefaults { theta: 10_000.0, share: 0.5, partial: true };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    DecoderConfig {
        family: "phi",
        norm: NormKind::LayerNorm,
        norm_eps: raw.float_or("layer_norm_eps", 1e-5)?,
        block: BlockKind::Parallel,
        shared_norm: true,
        query_key_norms: raw.flag_or("qk_layernorm", false)?.then_some(QueryKeyNorms::PerHead),
        activation: raw.activation("hidden_act", "gelu_new")?,
        gated_mlp: false,
        biases: Biases { head: true, ..Biases::blocks(true) },
        ..llama::base(raw, ROTARY)?
    }
    .validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    let layer = move |index| {
        let block = llama::module(index);
        let norms = ["self_attn.q_layernorm", "self_attn.k_layernorm"];
        LayerNames {
            mlp_norm: None,
            query_key_norms: config.query_key_norms.map(|_| norms.map(|norm| block.name(norm))),
            attention_output: Some(block.part("self_attn.dense")),
            mlp: block.mlp(["mlp.fc1"], "mlp.fc2"),
            ..layer(index, &config)
        }
    };
    TensorNames { final_norm: Some("final_layernorm"), ..llama::tensors(layer) }
}
