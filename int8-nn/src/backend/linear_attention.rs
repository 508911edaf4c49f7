//! Recurrences of linear attention and short convolutions: what a backend is told about them. Plain data.

use ndarray::Array2;

use super::Operand;
use crate::config::Activation;

/// The gated delta rule (Yang, Kautz, Hatamizadeh, 2024). For value head `a` of key head `⌊a/(heads/key_heads)⌋`, with
/// `q = q/(‖q‖·√key_size)`, `k = k/‖k‖` (`‖x‖² = Σx² + 10⁻⁶`), `β = beta_scale·σ(betas[a])` and
/// `γ = exp(A[a]·softplus(steps + step_bias))`,
/// `S ← γ·S`, `S ← S + k·(β·(v − Sᵀk))ᵀ`, `y[a] = Sᵀq`: the state `S` is `f32 [key_size, value_size]` for each head.
#[derive(Debug, Clone, PartialEq)]
pub struct GatedDeltaRule {
    /// Value heads.
    pub heads: usize,
    /// Heads of queries and keys; each serves as many consecutive value heads.
    pub key_heads: usize,
    /// Width of a query and of a key.
    pub key_size: usize,
    /// Width of a value.
    pub value_size: usize,
    /// `[key_heads·key_size]`
    pub queries: Operand,
    /// `[key_heads·key_size]`
    pub keys: Operand,
    /// `[heads·value_size]`
    pub values: Operand,
    /// `[heads]`, before the sigmoid.
    pub betas: Operand,
    /// `[heads]`: γ is one number for a head; or `[heads·key_size]`: one for each row of its state (Kimi Delta Attention).
    pub steps: Operand,
    /// `A f32 [heads]`, negative.
    pub transition: Vec<f32>,
    /// f32, as wide as `steps`.
    pub step_bias: Vec<f32>,
    /// The factor of β: 2 allows negative eigenvalues of the transition.
    pub beta_scale: f32,
}

/// Lightning attention (Qin et al., 2024): `S ← exp(−slope[a])·S + k·vᵀ`, `y[a] = Sᵀq` for each head `a`, whose query, key and
/// value `q, k, v [head_size]` have gone through an activation: the state `S` is `f32 [head_size, head_size]` for each head.
#[derive(Debug, Clone, PartialEq)]
pub struct LightningAttention {
    /// Width of a query, a key and a value.
    pub head_size: usize,
    /// `[heads·head_size]`
    pub queries: Operand,
    /// `[heads·head_size]`
    pub keys: Operand,
    /// `[heads·head_size]`
    pub values: Operand,
    /// Of queries, keys and values.
    pub activation: Activation,
    /// `f32 [heads]`, positive.
    pub slopes: Vec<f32>,
}

/// A short convolution between two gates: `y[t, c] = g[t, c]·(bias[c] + Σⱼ weight[c, j]·(b·x)[t − kernel + 1 + j, c])`, with zeros
/// before the sequence. The state is `b·x` of the last `kernel − 1` tokens, the oldest first.
#[derive(Debug, Clone, PartialEq)]
pub struct ShortConvolution {
    /// The gate of the input, `b [channels]`.
    pub before: Operand,
    /// The gate of the output, `g [channels]`.
    pub after: Operand,
    /// `x [channels]`
    pub x: Operand,
    /// `f32 [channels, kernel]`, the oldest token first.
    pub weight: Array2<f32>,
    /// `f32 [channels]`
    pub bias: Option<Vec<f32>>,
}
