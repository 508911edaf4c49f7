//! Transformers whose weights several blocks share.

use super::DecoderConfig;

/// A transformer that some blocks share (Zyphra, 2024): `t = W·mlp(norm(attention(norm([x, e]))))` without residual additions, `e`
/// the token embedding. Its output is added to the input of the block's recurrent mixer, and not to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedTransformer {
    /// Different transformers, which the blocks take in turn.
    pub count: usize,
    /// Rank of the adapters that each block adds to the MLP's expansion: `up(x) + B·(A·x)`.
    pub adapter_rank: Option<usize>,
    /// Each block adds adapters to queries, keys and values, too.
    pub attention_adapters: bool,
}

impl SharedTransformer {
    /// Weights and output channels of the linear layers that are shared, and of those that each block has for itself.
    pub(crate) fn weights(self, config: &DecoderConfig) -> [[usize; 2]; 2] {
        let (hidden, joined) = (config.hidden_size, 2 * config.hidden_size);
        let (queries, keys) = (config.heads * config.head_size, config.kv_heads * config.head_size);
        let up = config.intermediate_size * if config.gated_mlp { 2 } else { 1 };
        let qkv = queries + 2 * keys;
        let core = [
            qkv * joined + hidden * queries + up * hidden + hidden * config.intermediate_size,
            qkv + hidden + up + hidden,
        ];
        let mut own = [hidden * hidden, hidden];
        if let Some(rank) = self.adapter_rank {
            own = [own[0] + rank * (hidden + up), own[1] + rank + up];
            if self.attention_adapters {
                own = [own[0] + 3 * rank * joined + rank * qkv, own[1] + 3 * rank + qkv];
            }
        }
        [core, own]
    }
}
