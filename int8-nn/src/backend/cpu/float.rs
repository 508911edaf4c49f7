//! Weights in floating point: held in their stored type, multiplied in f32.

use std::sync::Arc;

use half::{bf16, f16};
use int8_cpu::float::product;
use int8_cpu::{Kernel, ArenaSlice, Store};
use ndarray::{Array2, ArrayView2, ArrayViewMut1, ArrayViewMut2};

use crate::Error;
use crate::weights::FloatMatrix;

/// A matrix shared between an embedding and a tied head.
#[derive(Debug, Clone)]
pub struct SharedMatrix {
    rows: usize,
    columns: usize,
    values: Arc<Values>,
}

/// Row-major.
#[derive(Debug)]
enum Values {
    F32(ArenaSlice<f32>),
    F16(ArenaSlice<f16>),
    Bf16(ArenaSlice<bf16>),
}

impl SharedMatrix {
    pub(super) fn new(matrix: FloatMatrix) -> Self {
        let (rows, columns) = matrix.dim();
        let values = match matrix {
            FloatMatrix::F32(matrix) => Values::F32(resident(matrix)),
            FloatMatrix::F16(matrix) => Values::F16(resident(matrix)),
            FloatMatrix::Bf16(matrix) => Values::Bf16(resident(matrix)),
        };
        Self { rows, columns, values: Arc::new(values) }
    }

    /// `(rows, columns)`.
    pub(super) fn dim(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    pub(super) fn bytes(&self) -> usize {
        match &*self.values {
            Values::F32(values) => size_of_val(&**values),
            Values::F16(values) => size_of_val(&**values),
            Values::Bf16(values) => size_of_val(&**values),
        }
    }

    fn view<'a, T>(&self, values: &'a [T]) -> ArrayView2<'a, T> {
        ArrayView2::from_shape(self.dim(), values).expect("as many values as the matrix had")
    }

    /// `out += matrix[row]`.
    pub(super) fn add_row(&self, row: usize, out: ArrayViewMut1<'_, f32>) {
        let row = row * self.columns..(row + 1) * self.columns;
        match &*self.values {
            Values::F32(values) => add(out, values[row].iter().copied()),
            Values::F16(values) => add(out, values[row].iter().map(|value| value.to_f32())),
            Values::Bf16(values) => add(out, values[row].iter().map(|value| value.to_f32())),
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
        match &*self.values {
            Values::F32(values) => product(kernel, x, self.view(values), bias, store, out)?,
            Values::F16(values) => product(kernel, x, self.view(values), bias, store, out)?,
            Values::Bf16(values) => product(kernel, x, self.view(values), bias, store, out)?,
        }
        Ok(())
    }
}

/// The values of a matrix as the weights of a layer are kept.
fn resident<T: Copy>(matrix: Array2<T>) -> ArenaSlice<T>
where
    ArenaSlice<T>: for<'a> From<&'a [T]>,
{
    ArenaSlice::from(matrix.as_standard_layout().as_slice().expect("standard layout is contiguous"))
}

fn add(mut out: ArrayViewMut1<'_, f32>, values: impl Iterator<Item = f32>) {
    out.iter_mut().zip(values).for_each(|(out, value)| *out += value);
}
