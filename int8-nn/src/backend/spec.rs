//! What a backend is told about a model, and the arguments of its operations. Plain data: nothing here belongs to one device.

use std::ops::Range;
use std::sync::Arc;

use int8_core::KvType;
use ndarray::Array2;

use super::Backend;
use super::recurrent::RecurrentLayer;
pub use super::routing::Routing;
use crate::config::{
    Activation, ClampedGate, Disentangled, HeadShape, IndexShape, NormKind, Positions, QueryGrowth,
};

/// Consecutive tokens of one sequence that a forward computes.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// Index of the sequence in the KV cache.
    pub sequence: usize,
    /// Position of the first token.
    pub position: usize,
    /// The tokens.
    pub ids: &'a [u32],
    /// Tokens of the text that these belong to, as far as it is known: its frequencies of rotary positions may depend on it. At
    /// least `position + ids.len()`.
    pub length: usize,
}

/// Rows of a forward's activations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowSelection {
    /// The last row of each segment: the next token is chosen from its logits.
    LastOfSegments,
    /// These rows, counted over all segments.
    Range(Range<usize>),
    /// These rows, counted over all segments, ascending.
    Rows(Vec<usize>),
}

/// The largest forward that a [`Backend::Batch`] can describe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchCapacity {
    /// Tokens.
    pub rows: usize,
    /// Segments.
    pub segments: usize,
    /// Rows selected for logits.
    pub selected: usize,
}

/// The size of a [`Backend::Cache`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheCapacity {
    /// Sequences.
    pub sequences: usize,
    /// Most positions of one sequence.
    pub max_positions: usize,
    /// Positions that all sequences share out among them, rounded up to whole pages; `None`: enough for each to be full.
    pub total_positions: Option<usize>,
}

/// What a sequence of operations is recorded under: two forwards with equal keys run the same operations on the same
/// buffers with the same numbers of rows. Everything else that differs between them is in the [`Backend::Batch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GraphKey {
    /// Which operations.
    pub phase: Phase,
    /// Tokens.
    pub rows: usize,
    /// Segments.
    pub segments: usize,
    /// Selected rows; 0 where the phase selects none.
    pub selected: usize,
}

/// What activations hold, by which a backend chooses their type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationRole {
    /// The residual stream, and what is added to it: f32.
    Residual,
    /// Logits: f32.
    Logits,
    /// Queries, keys and values of a block: f32, or the type that the backend computes in.
    QueriesKeysValues,
    /// What attention puts out, all heads side by side: likewise.
    Context,
    /// What else lies between two operations of a block: likewise.
    Intermediate,
}

/// A sequence of operations that is run as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Embedding and the blocks of a decoder.
    Forward,
    /// The head on selected rows.
    Logits,
    /// All of an encoder.
    Encode,
}

/// A normalisation with its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct NormSpec {
    /// Kind.
    pub kind: NormKind,
    /// Added under the root.
    pub eps: f32,
    /// Gain `[width]`.
    pub gain: Vec<f32>,
    /// Bias `[width]`.
    pub bias: Option<Vec<f32>>,
}

/// Which tokens of its sequence a token sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// Itself and those before it.
    Causal,
    /// All, as in an encoder: a sequence is one segment of one forward.
    Full,
}

/// A learned bias on attention scores for each head and distance (T5); beyond the table the bias at its end.
#[derive(Debug, Clone, PartialEq)]
pub struct DistanceBias {
    /// `f32 [heads, 2·reach + 1]`: the bias for `key position − query position` from `−reach` to `reach`.
    pub table: Array2<f32>,
    /// Largest distance with a bias of its own.
    pub reach: usize,
}

/// What attention depends on besides its operands.
#[derive(Debug, Clone)]
pub struct AttentionSpec {
    /// What differs between the blocks, one entry a layer of the cache.
    pub layers: Vec<LayerAttention>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_size: usize,
    /// Where these are not all of a model's query heads: the first of them, and the number of all.
    pub part: Option<(usize, usize)>,
    /// Which tokens are seen.
    pub mask: Mask,
    /// Factor of the scores: `1/√head_size`, or 1 for T5.
    pub scale: f32,
    /// `c·tanh(score/c)` on the scaled scores, before biases are added.
    pub softcap: Option<f32>,
    /// Added to the scores.
    pub bias: Option<DistanceBias>,
    /// The type that keys and values are rounded to. A number that it would round to infinity is an error of the forward.
    pub kv_cache: KvType,
    /// Nothing is read after the block that wrote it, as in an encoder: layers of equal heads may share their pages.
    pub transient: bool,
}

/// The attention of one block.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerAttention {
    /// Whether the block has attention: without it the cache has no keys and values for it.
    pub attends: bool,
    /// The recurrent state of the block's mixer.
    pub recurrent: Option<Arc<RecurrentLayer>>,
    /// How positions enter.
    pub positions: Positions,
    /// Number of latest positions seen, itself included; with [`Mask::Full`] of as many later ones, too.
    pub sliding_window: Option<usize>,
    /// Factor of this block's scores, besides [`AttentionSpec::scale`].
    pub factor: f32,
    /// Each head of queries, and each of keys, is normalised after the rotation.
    pub norms: Option<[NormSpec; 2]>,
    /// Only tokens since the last multiple of this number of positions are seen.
    pub chunk: Option<usize>,
    /// Rotated queries are multiplied by a factor that grows with their position.
    pub query_growth: Option<QueryGrowth>,
    /// `[heads]`: a score of each query head that takes its share of the softmax and has no value.
    pub sinks: Option<Vec<f32>>,
    /// The heads, where they are not those of the specification.
    pub shape: HeadShape,
    /// Only the keys that [`Backend::select_keys`] selected last are seen.
    pub selects: bool,
    /// The sizes of the layer's own selection.
    pub index: Option<IndexShape>,
    /// The layer of the cache whose keys and values are read; one that is not the layer's own has been written in the same
    /// forward, and there are queries alone.
    pub source: usize,
    /// Instead of [`AttentionSpec::bias`].
    pub bias: Option<DistanceBias>,
    /// Added to the scores before the softmax, by content and distance.
    pub disentangled: Option<Arc<DistanceVectors>>,
}

/// The projected embeddings of distances of disentangled attention in one block: the score of query `i` and key `j` is
/// `scale·(q_i·k_j + q_i·keys[b] + k_j·queries[b])`, `b` the [row](Disentangled::row) of `i − j`.
#[derive(Debug, Clone, PartialEq)]
pub struct DistanceVectors {
    /// Which row a distance has.
    pub distances: Disentangled,
    /// `f32 [2·span, heads·head_size]`, for the queries of tokens.
    pub keys: Option<Array2<f32>>,
    /// `f32 [2·span, heads·head_size]`, for the keys of tokens.
    pub queries: Option<Array2<f32>>,
}

/// A mixture of experts: `y = Σ w_e(x)·down_e(act(up_e(x)))` over the experts that the router chooses for a token; the shared
/// expert, which sees every token, is the last.
#[derive(Debug)]
pub struct Experts<B: Backend> {
    /// Logits of the experts, in floating point; with a gate of the shared expert, its logit behind them.
    pub router: B::Linear,
    /// From logits to the chosen experts and their weights `w_e`.
    pub routing: Routing,
    /// Each expert's expansion (and gate).
    pub up: Vec<B::Linear>,
    /// Each expert's contraction.
    pub down: Vec<B::Linear>,
    /// The activation.
    pub activation: Activation,
    /// `act(gate)·up` instead of `act(up)`.
    pub gated: bool,
    /// This instead of `act(gate)·up`.
    pub clamped_gate: Option<ClampedGate>,
    /// The router sees the input without its prologue, normalised by this.
    pub router_norm: Option<B::Norm>,
}

/// Columns of one of several matrices that are copied to columns of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColumnCopy {
    /// Index of the matrix.
    pub source: usize,
    /// First column there.
    pub from: usize,
    /// First column of the output.
    pub to: usize,
    /// Number of columns.
    pub count: usize,
}

/// The input of a projection: activations with their prologue.
#[derive(Debug)]
pub enum Input<'a, B: Backend> {
    /// `x [rows, K]`
    Plain(&'a B::Activations),
    /// `norm(x) [rows, K]`
    Normed(&'a B::Activations, &'a B::Norm),
    /// `act(x) [rows, K]`
    Activated(&'a B::Activations, Activation),
    /// `act(x[:, ..K]) · x[:, K..]`, `x [rows, 2K]`
    Gated(&'a B::Activations, Activation),
}

/// The output of a projection: activations with the store of the epilogue.
#[derive(Debug)]
pub enum Output<'a, B: Backend> {
    /// `out = y`
    Store(&'a mut B::Activations),
    /// `out += y`: the residual addition.
    Add(&'a mut B::Activations),
}

/// Counts of a linear layer's outliers since it was built or [`Backend::reset_statistics`] was called.
#[derive(Debug, Clone, Default)]
pub struct LinearStatistics {
    /// Name of the layer in the checkpoint.
    pub name: String,
    /// Input features K.
    pub inputs: usize,
    /// Calls of the layer.
    pub calls: u64,
    /// Sum over the calls of the number of columns with outliers.
    pub outlier_columns: u64,
    /// Sum over the calls of the number of values in the 16-bit product.
    pub outlier_values: u64,
    /// Sum over the calls of all values.
    pub values: u64,
    /// For each input feature: in how many calls it held an outlier.
    pub column_calls: Vec<u64>,
    /// Weight columns kept exactly.
    pub exact_columns: usize,
}
