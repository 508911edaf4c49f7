//! BitNet b1.58 (Microsoft, 2025), its 16-bit weights: LLaMA with squared ReLU and norms before the output projection of attention
//! and before the contraction of the MLP.

use serde_json::json;

use super::llama::{self, layer};
use super::{Family, LayerNames, TensorNames};
use crate::Error;
use crate::config::{DecoderConfig, RawConfig, RotaryDefaults};

pub(crate) const FAMILY: Family = Family { model_types: &["bitnet"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    let raw = &raw.with_defaults(&[("hidden_act", json!("relu2")), ("rms_norm_eps", json!(1e-5))]);
    let base = llama::base(raw, RotaryDefaults { theta: 500_000.0, ..RotaryDefaults::default() })?;
    DecoderConfig { family: "bitnet", inner_norms: true, ..base }.validate(raw)
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| {
        let norms = ["self_attn.attn_sub_norm", "mlp.ffn_sub_norm"];
        LayerNames {
            inner_norms: Some(norms.map(|norm| llama::module(index).name(norm))),
            ..layer(index, &config)
        }
    })
}
