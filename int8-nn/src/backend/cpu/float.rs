//! Weights in floating point: held in their stored type, multiplied in f32.

use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use ndarray::linalg::general_mat_mul;
use ndarray::parallel::prelude::*;
use ndarray::{ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis};

use super::elementwise::dot;
use crate::weights::FloatMatrix;

/// Output columns of a task: its weights widened to f32 (for K = 4096, 1 MiB) stay in the L2 cache of a core.
const BLOCK: usize = 64;

/// Input rows up to which each output is a dot product: the weights are read once and widened on the way.
const DOT_ROWS: usize = 4;

/// A matrix shared between an embedding and a tied head.
#[derive(Debug, Clone)]
pub struct SharedMatrix(Arc<FloatMatrix>);

impl SharedMatrix {
    pub(super) fn new(matrix: FloatMatrix) -> Self {
        Self(Arc::new(matrix))
    }

    /// `(rows, columns)`.
    pub(super) fn dim(&self) -> (usize, usize) {
        self.0.dim()
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// `out += matrix[row]`.
    pub(super) fn add_row(&self, row: usize, out: ArrayViewMut1<'_, f32>) {
        match &*self.0 {
            FloatMatrix::F32(matrix) => add(out, matrix.row(row).iter().copied()),
            FloatMatrix::F16(matrix) => add(out, matrix.row(row).iter().map(|value| value.to_f32())),
            FloatMatrix::Bf16(matrix) => add(out, matrix.row(row).iter().map(|value| value.to_f32())),
        }
    }

    /// `out [M, N] = x [M, K] · matrixᵀ + bias`, added to what `out` holds if `add`.
    pub(super) fn multiply(
        &self,
        x: ArrayView2<'_, f32>,
        bias: Option<&[f32]>,
        mut out: ArrayViewMut2<'_, f32>,
        add: bool,
    ) {
        let blocks: Vec<_> = out.axis_chunks_iter_mut(Axis(1), BLOCK).enumerate().collect();
        blocks.into_par_iter().for_each_init(Vec::new, |scratch, (index, mut out)| {
            let first = index * BLOCK;
            if !add {
                out.fill(0.0);
            }
            if let Some(bias) = bias {
                for (mut column, bias) in out.columns_mut().into_iter().zip(&bias[first..]) {
                    column += *bias;
                }
            }
            let rows = first..first + out.ncols();
            if x.nrows() <= DOT_ROWS {
                for (n, row) in rows.enumerate() {
                    let weight = self.widened(row..row + 1, scratch);
                    for (m, x) in x.rows().into_iter().enumerate() {
                        out[[m, n]] += dot(x.to_slice().expect("rows are contiguous"), weight);
                    }
                }
            } else {
                let shape = (out.ncols(), x.ncols());
                let weight = ArrayView2::from_shape(shape, self.widened(rows, scratch)).expect("whole rows");
                general_mat_mul(1.0, &x, &weight.t(), 1.0, &mut out);
            }
        });
    }

    /// Rows as f32: borrowed, or widened into `scratch`.
    fn widened<'a>(&'a self, rows: std::ops::Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        let width = self.dim().1;
        let range = rows.start * width..rows.end * width;
        scratch.resize(range.len(), 0.0);
        match &*self.0 {
            FloatMatrix::F32(matrix) => return &flat(matrix.as_slice())[range],
            FloatMatrix::F16(matrix) => flat(matrix.as_slice())[range].convert_to_f32_slice(scratch),
            FloatMatrix::Bf16(matrix) => flat(matrix.as_slice())[range].convert_to_f32_slice(scratch),
        }
        scratch
    }
}

fn flat<T>(matrix: Option<&[T]>) -> &[T] {
    matrix.expect("weights are read in row-major order")
}

fn add(mut out: ArrayViewMut1<'_, f32>, values: impl Iterator<Item = f32>) {
    out.iter_mut().zip(values).for_each(|(out, value)| *out += value);
}
