//! Sizes of linear attention and of short convolutions: mixers of one input projection of several parts, a convolution, a
//! recurrence, a norm, a gate and an output projection.

use super::{Activation, RawConfig};
use crate::Error;

/// The gated delta rule: Gated DeltaNet and, with a rank, Kimi Delta Attention.
#[derive(Debug, Clone, PartialEq)]
pub struct GatedDelta {
    /// Value heads.
    pub heads: usize,
    /// Heads of queries and keys; each serves as many consecutive value heads.
    pub key_heads: usize,
    /// Width of a query and of a key.
    pub key_size: usize,
    /// Width of a value.
    pub value_size: usize,
    /// Tokens that the convolution of queries, keys and values sees.
    pub kernel: usize,
    /// After the convolution.
    pub activation: Activation,
    /// The factor of β.
    pub beta_scale: f32,
    /// ε of the norm of each head's output.
    pub norm_eps: f32,
    /// Of the gate behind that norm.
    pub gate: Activation,
    /// The decay of each channel of the keys, and the gate, come through projections of this rank. Without it the decay is one
    /// number for each head, and both come from the input projection.
    pub rank: Option<usize>,
}

/// Lightning attention.
#[derive(Debug, Clone, PartialEq)]
pub struct Lightning {
    /// Heads.
    pub heads: usize,
    /// Width of a query, a key and a value.
    pub head_size: usize,
    /// Of queries, keys and values.
    pub activation: Activation,
    /// ε of the norm of the output of all heads.
    pub norm_eps: f32,
    /// The model's number of blocks, which the slopes depend on.
    pub blocks: usize,
}

impl Lightning {
    /// `2^(−8(a + 1)/heads)·(1 − layer/(blocks − 1 + 10⁻⁵) + 10⁻⁵)` for head `a`.
    pub fn slope(&self, layer: usize, head: usize) -> f32 {
        use crate::convert::f64_from;
        let base = (-8.0 * f64_from(head + 1) / f64_from(self.heads)).exp2();
        let factor = 1.0 - f64_from(layer) / (f64_from(self.blocks) - 1.0 + 1e-5) + 1e-5;
        crate::convert::f32_from(base * factor)
    }
}

/// A short convolution between two gates.
#[derive(Debug, Clone, PartialEq)]
pub struct GatedConvolution {
    /// Channels.
    pub channels: usize,
    /// Tokens that the convolution sees.
    pub kernel: usize,
    /// The convolution and both projections have biases.
    pub biases: bool,
}

/// The widths that such mixers have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Widths {
    /// Of the parts of the input projection.
    pub(crate) parts: Vec<usize>,
    /// Of the input of the output projection.
    pub(crate) mixed: usize,
    /// Leading columns of the input projection that are convolved before the recurrence.
    pub(crate) convolved: usize,
    /// Output channels and input features of further layers: of the decay, of the gate.
    pub(crate) low: Vec<[usize; 2]>,
    /// f32 values that a sequence keeps.
    pub(crate) state: usize,
}

impl Widths {
    /// Output channels and input features of the linear layers, those of the input and of the output projection first.
    pub(crate) fn layers(&self, hidden: usize) -> Vec<[usize; 2]> {
        let mut layers = vec![[self.projected(), hidden], [hidden, self.mixed]];
        layers.extend(&self.low);
        layers
    }

    /// Columns of the input projection.
    pub(crate) fn projected(&self) -> usize {
        self.parts.iter().sum()
    }
}

impl GatedDelta {
    /// Input projection: queries, keys, values, then gate, β and decay; with a rank β, then decay and gate at that rank.
    pub(crate) fn widths(&self) -> Widths {
        let (keys, values) = (self.key_heads * self.key_size, self.heads * self.value_size);
        let convolved = 2 * keys + values;
        let mut parts = vec![keys, keys, values];
        parts.extend(match self.rank {
            None => [values, self.heads, self.heads],
            Some(rank) => [self.heads, rank, rank],
        });
        Widths {
            parts,
            mixed: values,
            convolved,
            low: self
                .rank
                .map_or(Vec::new(), |rank| vec![[self.heads * self.key_size, rank], [values, rank]]),
            state: values * self.key_size + convolved * (self.kernel - 1),
        }
    }

    pub(super) fn validate(&self, raw: &RawConfig) -> Result<(), Error> {
        if self.heads.is_multiple_of(self.key_heads) {
            return Ok(());
        }
        Err(raw.problem(
            "linear_num_key_heads",
            format!("is {}; it must divide the {} value heads", self.key_heads, self.heads),
        ))
    }
}

impl Lightning {
    /// Input projection: queries, keys, values, gate.
    pub(crate) fn widths(&self) -> Widths {
        let width = self.heads * self.head_size;
        Widths {
            parts: vec![width; 4],
            mixed: width,
            convolved: 0,
            low: Vec::new(),
            state: width * self.head_size,
        }
    }
}

impl GatedConvolution {
    /// Input projection: gate before, gate after, x.
    pub(crate) fn widths(&self) -> Widths {
        Widths {
            parts: vec![self.channels; 3],
            mixed: self.channels,
            convolved: 0,
            low: Vec::new(),
            state: self.channels * (self.kernel - 1),
        }
    }
}
