//! Persimmon (Adept, 2023): partial rotary positions, LayerNorms on queries and keys, squared ReLU, query-key-value fused head by
//! head.

use serde_json::json;

use super::{Family, LayerNames, Module, TensorNames, gpt_neox};
use crate::Error;
use crate::config::{DecoderConfig, Positions, QueryKeyNorms, RawConfig, Rotary, RotaryDefaults, SizeKeys};

pub(crate) const FAMILY: Family = Family { model_types: &["persimmon"], config, names };

const ROTARY: RotaryDefaults = RotaryDefaults { theta: 10_000.0, share: 0.5, partial: true };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[("max_position_embeddings", json!(16384))]);
    let base = DecoderConfig::sized(raw, SizeKeys::default())?;
    let rotary = Rotary::read(raw, base.head_size, ROTARY)?;
    DecoderConfig {
        family: "persimmon",
        intermediate_size: raw.size("intermediate_size")?,
        max_positions: rotary.max_positions(raw.size("max_position_embeddings")?),
        norm_eps: raw.float_or("layer_norm_eps", 1e-5)?,
        positions: Positions::Rotary(rotary),
        query_key_norms: raw.flag_or("qk_layernorm", true)?.then_some(QueryKeyNorms::PerHead),
        activation: raw.activation("hidden_act", "relu2")?,
        ..base
    }
    .validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    let layer = move |layer| {
        let block = Module::new(format!("layers.{layer}"));
        let norms = || ["self_attn.q_layernorm", "self_attn.k_layernorm"].map(|norm| block.name(norm));
        LayerNames {
            query_key_norms: config.query_key_norms.map(|_| norms()),
            ..gpt_neox::block(&block, "self_attn", &config)
        }
    };
    TensorNames::new(&["model.", ""], "embed_tokens", "final_layernorm", layer)
}
