//! Weights in floating point: held in their stored type, multiplied in f32.

use std::sync::Arc;

use int8_cpu::float::product;
use int8_cpu::{Kernel, Store};
use ndarray::{ArrayView2, ArrayViewMut1, ArrayViewMut2};

use crate::Error;
use crate::weights::FloatMatrix;

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

    /// `out [M, N] (+)= x [M, K] · matrixᵀ + bias`.
    pub(super) fn multiply(
        &self,
        kernel: Kernel,
        x: ArrayView2<'_, f32>,
        bias: Option<&[f32]>,
        store: Store,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), Error> {
        match &*self.0 {
            FloatMatrix::F32(matrix) => product(kernel, x, matrix.view(), bias, store, out)?,
            FloatMatrix::F16(matrix) => product(kernel, x, matrix.view(), bias, store, out)?,
            FloatMatrix::Bf16(matrix) => product(kernel, x, matrix.view(), bias, store, out)?,
        }
        Ok(())
    }
}

fn add(mut out: ArrayViewMut1<'_, f32>, values: impl Iterator<Item = f32>) {
    out.iter_mut().zip(values).for_each(|(out, value)| *out += value);
}
