//! Parts of a model that differ from block to block or belong to no block alone.

use super::BlockSet;

/// The heads of attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_size: usize,
}

impl HeadShape {
    /// Columns of the queries.
    pub fn queries(&self) -> usize {
        self.heads * self.head_size
    }

    /// Columns of the keys, and of the values.
    pub fn keys(&self) -> usize {
        self.kv_heads * self.head_size
    }
}

/// The lightning indexer of sparse attention (DeepSeek-AI, 2025): each token has some small queries with weights, and one small key;
/// attention sees the keys with the largest `Σ_h w_h·max(q_h·k, 0)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Indexer {
    /// Its sizes.
    pub shape: IndexShape,
    /// Blocks that select; the others see what the last of these before them selected.
    pub blocks: BlockSet,
    /// The rotated dimensions are stored as pairs `(2i, 2i + 1)` and not `(i, i + rotated/2)`.
    pub interleaved: bool,
}

/// Sizes of an [`Indexer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexShape {
    /// Queries of a token.
    pub heads: usize,
    /// Width of a query and of the key.
    pub size: usize,
    /// Keys that are selected.
    pub chosen: usize,
}

/// Heads of values whose width is not that of a head in the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueHeads {
    /// They are so wide, and filled up with zeros.
    Narrow(usize),
    /// Differential attention (Ye et al., 2024): keys are half as wide as a head, and each head of values is one of the first half of
    /// the stored ones and its like of the second half. Of the heads' outputs the second half, times a number of the block, is
    /// subtracted from the first, and each result is normalised.
    Differential,
}

/// Embeddings for each block (Gemma 3n, 2025): block `l` gets `(norm(P·x₀/√hidden) + √width·E[id])/√2`, its own columns of both
/// terms, with the token embedding `x₀`, and adds `norm(down(act(gate(x)) · input))` at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerInputs {
    /// Columns of a block.
    pub width: usize,
    /// Rows of E; row 0 stands for ids beyond.
    pub vocabulary: usize,
}

/// Alternating updates (Baykal et al., 2023) of several residual streams: a block predicts all from all, computes the first, and
/// corrects all by the difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    /// Number of streams.
    pub count: usize,
    /// Rank of the learned residual layer beside attention (LAuReL).
    pub rank: usize,
    /// The first stream is multiplied by a learned vector where the block's own embedding is added.
    pub scales_output: bool,
}
