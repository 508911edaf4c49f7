//! MiMo-V2-Flash (Xiaomi, 2025): DeepSeek-V3's experts, and blocks with a window that have twice as many heads of keys and attention
//! sinks; heads of values are narrower than those of keys, and scaled.

use serde_json::json;

use super::llama::{self, layer};
use super::{Family, LayerNames, TensorNames, moe};
use crate::config::{
    AlternateAttention, Biases, BlockSet, DecoderConfig, ExpertsConfig, HeadShape, Positions, RawConfig,
    Rotary, RotaryDefaults, RotaryScaling, ValueHeads,
};
use crate::{Error, convert};

pub(crate) const FAMILY: Family = Family { model_types: &["mimo_v2_flash"], config, names };

fn config(raw: &RawConfig) -> Result<DecoderConfig, Error> {
    const SIZE: &str = "sliding_window_size";
    let raw = &raw.renamed("num_local_experts", "n_routed_experts").with_defaults(&[
        ("head_dim", json!(192)),
        ("num_key_value_heads", json!(4)),
        ("rms_norm_eps", json!(1e-5)),
        ("n_routed_experts", json!(256)),
        ("num_experts_per_tok", json!(8)),
        ("moe_intermediate_size", json!(2048)),
        ("n_shared_experts", json!(0)),
        ("max_position_embeddings", json!(131_072)),
    ]);
    let of = |kind, theta| -> Result<Positions, Error> {
        let defaults = RotaryDefaults { theta, share: 0.334, partial: true };
        Ok(Positions::Rotary(even(llama::rotary_of(raw, kind, defaults)?)))
    };
    let (full, sliding) = (of("full_attention", 5_000_000.0)?, of("sliding_attention", 10_000.0)?);
    let base = llama::base(&raw.without("rope_parameters"), RotaryDefaults::default())?;
    let layers = base.layers;
    let default = (0..layers).map(|layer| layer > 0 && !(layer + 1).is_multiple_of(6)).collect();
    let blocks = raw.sliding_blocks(layers, BlockSet::Marked(default))?;
    let wide = HeadShape { heads: base.heads, kv_heads: 2 * base.kv_heads, head_size: base.head_size };
    let value = raw.size_or("v_head_dim", 128)?;
    if value > base.head_size {
        return Err(raw.problem("v_head_dim", "is more than `head_dim`, which is not implemented"));
    }
    let window = match raw.get(SIZE) {
        Some(_) => raw.size(SIZE)? + 1,
        None => raw.size_or("sliding_window", 129)?,
    };
    let experts = ExpertsConfig { dense_blocks: moe::dense_blocks(raw, layers, 1)?, ..moe::deepseek(raw)? };
    let scale = match raw.is_null("attention_value_scale") {
        true => None,
        false => Some(raw.float_or("attention_value_scale", 0.707)?),
    };
    DecoderConfig {
        family: "mimo_v2_flash",
        biases: Biases { attention_output: false, ..base.biases },
        positions: full,
        shapes: Some((blocks.clone(), wide)),
        alternate: Some(AlternateAttention { blocks, positions: sliding, sliding_window: Some(window) }),
        attention_sinks: true,
        values: Some(ValueHeads::Narrow(value)),
        value_scale: scale,
        experts: Some(experts),
        ..base
    }
    .validate(raw)
}

/// An odd number of dimensions d as one more: pair i turns by θ^(−2i/d) all the same.
fn even(rotary: Rotary) -> Rotary {
    if rotary.dims.is_multiple_of(2) || rotary.scaling != RotaryScaling::None {
        return rotary;
    }
    let (odd, dims) = (rotary.dims, rotary.dims + 1);
    let theta = rotary.theta.powf(convert::f64_from(dims) / convert::f64_from(odd));
    Rotary { dims, theta, ..rotary }
}

fn names(config: &DecoderConfig) -> TensorNames {
    let config = config.clone();
    llama::tensors(move |index| {
        let plain = layer(index, &config);
        let windowed = config.attention(index).1.is_some();
        LayerNames {
            sinks: windowed.then(|| llama::module(index).name("self_attn.attention_sink_bias")),
            mlp: match &config.experts {
                Some(experts) if experts.in_block(index) => moe::Names::default().of(index, experts),
                _ => plain.mlp,
            },
            ..plain
        }
    })
}
