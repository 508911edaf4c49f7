//! The rows that a layer quantises: those of `x`, normalised, activated or gated one at a time into scratch that stays in L1.

use int8_core::{Error as CoreError, FloatSlice};

use super::activation::{Activate, Function};
use super::encode::{BLOCK, scratch_length, widen};
use super::norm::Normalize;
use crate::error::Error;
use crate::matrix::Source;
use crate::simd::{Instructions, Vectorize, Vectorized};

/// What is computed from each row of `x`, in f32, before it is quantised.
#[derive(Debug, Clone, Copy, Default)]
pub enum Prologue<'a> {
    /// The row itself.
    #[default]
    None,
    /// `(x − mean(x))·gain/√(variance(x) + eps) + bias`
    LayerNorm {
        /// `f32 [K]`
        gain: &'a [f32],
        /// `f32 [K]`
        bias: Option<&'a [f32]>,
        /// Added to the variance.
        eps: f32,
    },
    /// `x·gain/√(mean(x²) + eps)`
    RmsNorm {
        /// `f32 [K]`
        gain: &'a [f32],
        /// Added to the mean square.
        eps: f32,
    },
    /// `f(x)`
    Activation(Function),
    /// `f(x[..K])·x[K..]`, of a row of 2·K values.
    Gate(Function),
}

impl Prologue<'_> {
    /// K of the result for `x [rows, columns]`.
    ///
    /// # Errors
    /// The reference's `Length` for a gain or bias that has not K values, and for a gate over an odd number of columns.
    pub(crate) fn inner(&self, columns: usize) -> Result<usize, Error> {
        let lengths = match self {
            Self::None | Self::Activation(_) => return Ok(columns),
            Self::Gate(_) if !columns.is_multiple_of(2) => {
                let (what, expected) = ("columns of a gate's input", columns + 1);
                return Err(CoreError::Length { what, expected, found: columns }.into());
            }
            Self::Gate(_) => return Ok(columns / 2),
            Self::LayerNorm { gain, bias, .. } => [Some(*gain), *bias],
            Self::RmsNorm { gain, .. } => [Some(*gain), None],
        };
        for (what, values) in
            ["gain of the normalisation", "bias of the normalisation"].into_iter().zip(lengths)
        {
            if let Some(found) = values.map(<[f32]>::len).filter(|found| *found != columns) {
                return Err(CoreError::Length { what, expected: columns, found }.into());
            }
        }
        Ok(columns)
    }

    /// Whether computing a row a second time takes longer than reading it back from L2: an activation takes some 20 cycles
    /// for 16 values, a normalisation 5.
    pub(crate) fn is_costly(&self) -> bool {
        matches!(self, Self::Activation(_) | Self::Gate(_))
    }
}

/// `x` with its prologue.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) x: Source<'a>,
    pub(crate) prologue: Prologue<'a>,
    /// K, as of [`Prologue::inner`].
    pub(crate) inner: usize,
}

/// Scratch of one thread.
#[derive(Default)]
pub(crate) struct RowScratch {
    /// A row after its prologue, padded with zeros to whole blocks.
    row: Vec<f32>,
    /// A 16-bit row in f32, before its prologue.
    widened: Vec<f32>,
}

impl Rows<'_> {
    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.x.rows
    }

    /// Row `row` in whole blocks, zeros behind K: in `scratch`, or where it is if nothing has to be computed.
    #[inline(always)]
    pub(crate) fn blocks<'s, I: Instructions, K: Vectorize>(
        &'s self,
        simd: I,
        kernel: K,
        row: usize,
        scratch: &'s mut RowScratch,
    ) -> &'s [[f32; BLOCK]] {
        match self.prologue {
            Prologue::None => widen(simd, self.x.row(row), &mut scratch.row),
            _ => self.materialize(kernel, row, scratch),
        }
    }

    /// The same, always in `scratch`.
    #[inline]
    pub(crate) fn materialize<'s, K: Vectorize>(
        &self,
        kernel: K,
        row: usize,
        scratch: &'s mut RowScratch,
    ) -> &'s mut [[f32; BLOCK]] {
        scratch.row.resize(scratch_length(self.inner), 0.0);
        let (out, padding) = scratch.row.split_at_mut(self.inner);
        padding.fill(0.0);
        // One function per kernel, called once a row: inlined into each caller, the activations would be compiled a dozen times.
        kernel.vectorize(ApplyRow {
            prologue: self.prologue,
            row: self.x.row(row),
            widened: &mut scratch.widened,
            out,
        });
        scratch.row.as_chunks_mut().0
    }
}

/// Computes the prologue of one row.
pub(crate) struct ApplyRow<'a> {
    pub(crate) prologue: Prologue<'a>,
    pub(crate) row: FloatSlice<'a>,
    pub(crate) widened: &'a mut Vec<f32>,
    /// `f32 [K]`
    pub(crate) out: &'a mut [f32],
}

impl Vectorized for ApplyRow<'_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self { prologue, row, widened, out } = self;
        let x = match row {
            FloatSlice::F32(row) => row,
            row => &widen(simd, row, widened).as_flattened()[..row.len()],
        };
        match prologue {
            Prologue::None => out.copy_from_slice(x),
            Prologue::LayerNorm { gain, bias, eps } => {
                Normalize { x, gain, bias, eps, centred: true, out }.call(simd);
            }
            Prologue::RmsNorm { gain, eps } => {
                Normalize { x, gain, bias: None, eps, centred: false, out }.call(simd);
            }
            Prologue::Activation(function) => Activate { function, x, factors: None, out }.call(simd),
            Prologue::Gate(function) => {
                let (x, factors) = x.split_at(out.len());
                Activate { function, x, factors: Some(factors), out }.call(simd);
            }
        }
    }
}
