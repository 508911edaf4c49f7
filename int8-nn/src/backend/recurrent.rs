//! Mixers with a recurrent state: what a backend is told about them. Plain data: nothing here belongs to one device.
//!
//! A mixer of this kind keeps, for each sequence, the last inputs of a causal convolution and a state that each token updates,
//! both of a size that does not depend on the sequence's length. They lie in the [`Backend::Cache`](super::Backend::Cache)
//! beside keys and values, and share their life cycle.

use std::ops::Range;

use ndarray::Array2;

use super::{GatedDeltaRule, LightningAttention, ShortConvolution};
use crate::config::Activation;

/// What the mixer of one block keeps for each sequence, and how a token changes it.
#[derive(Debug, Clone, PartialEq)]
pub struct RecurrentLayer {
    /// See [`Backend::convolve`](super::Backend::convolve).
    pub convolution: Option<Convolution>,
    /// See [`Backend::recur`](super::Backend::recur).
    pub recurrence: Option<Recurrence>,
}

/// A causal depthwise convolution: `y[t, c] = act(bias[c] + Σⱼ weight[c, j]·x[t − kernel + 1 + j, c])`, with zeros before the
/// sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Convolution {
    /// The columns of the activations it is applied to, in place.
    pub columns: Range<usize>,
    /// `f32 [columns, kernel]`, the oldest token first.
    pub weight: Array2<f32>,
    /// `f32 [columns]`
    pub bias: Option<Vec<f32>>,
    /// Applied to the sum.
    pub activation: Option<Activation>,
}

impl Convolution {
    /// Values kept for a sequence: the inputs of its last `kernel − 1` tokens.
    pub fn window(&self) -> usize {
        self.columns.len() * self.weight.ncols().saturating_sub(1)
    }
}

/// A recurrence over the tokens of a sequence, one for each kind of mixer.
#[derive(Debug, Clone, PartialEq)]
pub enum Recurrence {
    /// Mamba: a decay for each channel and dimension of the state.
    SelectiveScan(SelectiveScan),
    /// Mamba-2: one decay for each head.
    HeadScan(HeadScan),
    /// Gated DeltaNet and Kimi Delta Attention.
    GatedDelta(GatedDeltaRule),
    /// Lightning attention.
    Lightning(LightningAttention),
    /// A short convolution between two gates.
    ShortConvolution(ShortConvolution),
}

impl Recurrence {
    /// Values of the state of a sequence.
    pub fn state(&self) -> usize {
        match self {
            Self::SelectiveScan(scan) => scan.transition.len(),
            Self::HeadScan(scan) => scan.heads * scan.head_size * scan.state,
            Self::GatedDelta(rule) => rule.heads * rule.key_size * rule.value_size,
            Self::Lightning(spec) => spec.slopes.len() * spec.head_size * spec.head_size,
            Self::ShortConvolution(spec) => spec.weight.nrows() * spec.weight.ncols().saturating_sub(1),
        }
    }

    /// Columns of the output.
    pub fn outputs(&self) -> usize {
        match self {
            Self::SelectiveScan(scan) => scan.transition.nrows(),
            Self::HeadScan(scan) => scan.heads * scan.head_size,
            Self::GatedDelta(rule) => rule.heads * rule.value_size,
            Self::Lightning(spec) => spec.slopes.len() * spec.head_size,
            Self::ShortConvolution(spec) => spec.weight.nrows(),
        }
    }
}

/// Columns of one of the inputs of [`Backend::recur`](super::Backend::recur).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operand {
    /// Index of the input.
    pub input: usize,
    /// Its columns.
    pub columns: Range<usize>,
}

/// The selective scan of Mamba (Gu, Dao, 2023): with `Δ = softplus(steps + step_bias)`, for channel `c` and dimension `n` of the
/// state,
/// `h[c, n] = exp(Δ[c]·A[c, n])·h[c, n] + Δ[c]·B[n]·x[c]`, `y[c] = Σₙ h[c, n]·C[n] + D[c]·x[c]`.
#[derive(Debug, Clone, PartialEq)]
pub struct SelectiveScan {
    /// `x [channels]`
    pub x: Operand,
    /// `[channels]`
    pub steps: Operand,
    /// `B [groups·state]`: each group of as many consecutive channels has its own.
    pub b: Operand,
    /// `C [groups·state]`
    pub c: Operand,
    /// `A f32 [channels, state]`, negative.
    pub transition: Array2<f32>,
    /// `D f32 [channels]`
    pub skip: Vec<f32>,
    /// `f32 [channels]`
    pub step_bias: Option<Vec<f32>>,
}

/// The recurrence of Mamba-2 (Dao, Gu, 2024): with `Δ = clamp(softplus(steps + step_bias))`, for head `a`, its channel `p` and
/// dimension `n` of the state,
/// `h[a, p, n] = exp(Δ[a]·A[a])·h[a, p, n] + Δ[a]·B[n]·x[a, p]`, `y[a, p] = Σₙ h[a, p, n]·C[n] + D[a]·x[a, p]`.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadScan {
    /// Heads.
    pub heads: usize,
    /// Channels of a head.
    pub head_size: usize,
    /// Dimensions of the state of a channel.
    pub state: usize,
    /// `x [heads·head_size]`
    pub x: Operand,
    /// `[heads]`
    pub steps: Operand,
    /// `B [groups·state]`: each group of as many consecutive heads has its own.
    pub b: Operand,
    /// `C [groups·state]`
    pub c: Operand,
    /// `A f32 [heads]`, negative.
    pub transition: Vec<f32>,
    /// `D f32 [heads]`
    pub skip: Vec<f32>,
    /// `f32 [heads]`
    pub step_bias: Vec<f32>,
    /// The least and the largest Δ.
    pub step_limits: [f32; 2],
}
