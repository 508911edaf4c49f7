//! Parts of a model that differ from block to block or belong to no block alone.

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
