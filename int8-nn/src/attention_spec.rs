//! What attention is told about the blocks of a model.

use crate::backend::{AttentionSpec, Backend, DistanceBias, KvType, LayerAttention, Mask};
use crate::block::Block;
use crate::config::DecoderConfig;
use crate::convert;

/// Attention of blocks with this mask, over `layers` layers of an f32 cache.
pub(crate) fn attention_spec(config: &DecoderConfig, layers: usize, mask: Mask) -> AttentionSpec {
    let divisor = config.attention_divisor.unwrap_or(convert::f64_from(config.head_size));
    let layer = |index| {
        let (positions, sliding_window) = config.attention(index);
        let shape = config.shape(index);
        let factor = if config.scores_by_layer {
            convert::f32_from(1.0 / convert::f64_from(index + 1))
        } else if config.attention_divisor.is_none() {
            let [usual, own] = [config.head_size, shape.head_size].map(convert::f64_from);
            convert::f32_from((usual / own).sqrt())
        } else {
            1.0
        };
        let own_index = config.indexer.as_ref().filter(|indexer| indexer.blocks.contains(index));
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
            bias: None,
            disentangled: None,
            shape,
            source: config.source(index),
            selects: config.indexer.is_some(),
            index: own_index.map(|indexer| indexer.shape),
        }
    };
    AttentionSpec {
        layers: (0..layers).map(layer).collect(),
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_size: config.head_size,
        part: None,
        mask,
        scale: convert::f32_from(1.0 / divisor.sqrt()),
        softcap: config.attention_softcap,
        bias: None,
        kv_cache: KvType::F32,
        transient: false,
    }
}

/// Attention of an encoder's blocks to all tokens, and for each block its layer of the cache: blocks that attend alike have
/// one.
pub(crate) fn full_attention<B: Backend>(
    config: &DecoderConfig,
    blocks: &[Block<B>],
    bias: Option<&DistanceBias>,
) -> (AttentionSpec, Vec<usize>) {
    let mut spec = attention_spec(config, blocks.len(), Mask::Full);
    let mut layers: Vec<LayerAttention> = Vec::new();
    let mut places = Vec::new();
    for (mut layer, block) in spec.layers.drain(..).zip(blocks) {
        block.complete(&mut layer);
        layer.source = 0;
        places.push(layers.iter().position(|known| *known == layer).unwrap_or_else(|| {
            layers.push(layer);
            layers.len() - 1
        }));
    }
    layers.iter_mut().enumerate().for_each(|(index, layer)| layer.source = index);
    (AttentionSpec { layers, bias: bias.cloned(), transient: true, ..spec }, places)
}
