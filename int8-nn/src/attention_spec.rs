//! What attention depends on, from a model's description.

use crate::backend::{AttentionSpec, FloatType, LayerAttention, Mask};
use crate::config::DecoderConfig;

/// Attention of blocks with this mask, over `layers` layers of an f32 cache.
pub(crate) fn attention_spec(config: &DecoderConfig, layers: usize, mask: Mask) -> AttentionSpec {
    let divisor = config.attention_divisor.unwrap_or(crate::convert::f64_from(config.head_size));
    let layer = |index| {
        let (positions, sliding_window) = config.attention(index);
        let factor = if config.scores_by_layer {
            crate::convert::f32_from(1.0 / crate::convert::f64_from(index + 1))
        } else {
            1.0
        };
        let growth = config.query_growth.as_ref().filter(|(blocks, _)| blocks.contains(index));
        LayerAttention {
            attends: config.mixer(index).attends(),
            recurrent: None,
            positions: positions.clone(),
            sliding_window,
            factor,
            norms: None,
            chunk: config.chunks.as_ref().filter(|(blocks, _)| blocks.contains(index)).map(|(_, size)| *size),
            query_growth: growth.map(|(_, growth)| *growth),
            sinks: None,
        }
    };
    AttentionSpec {
        layers: (0..layers).map(layer).collect(),
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_size: config.head_size,
        mask,
        scale: crate::convert::f32_from(1.0 / divisor.sqrt()),
        softcap: config.attention_softcap,
        bias: None,
        kv_cache: FloatType::F32,
    }
}
