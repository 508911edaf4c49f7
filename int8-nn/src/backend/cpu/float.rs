//! Weights in floating point: held in their stored type, multiplied in f32.

use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use int8_core::{Element, FloatSlice, FloatType};
use int8_cpu::float::product;
use int8_cpu::{ArenaSlice, Kernel, Store};
use ndarray::{ArrayView2, ArrayViewMut1, ArrayViewMut2};
use rayon::prelude::*;

use crate::Error;
use crate::weights::FloatMatrix;

/// A matrix shared between an embedding and a tied head.
#[derive(Debug, Clone)]
pub struct SharedMatrix {
    /// Where it is a part of the values.
    first_row: usize,
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
    /// Copies the rows of a matrix.
    pub(super) fn new(matrix: FloatMatrix<'_>) -> Self {
        let (rows, columns) = matrix.dim();
        let values = match matrix.float_type() {
            FloatType::F32 => {
                Values::F32(copied(&matrix, ArenaSlice::zeroed(rows * columns), |row| match row {
                    FloatSlice::F32(row) => row,
                    _ => &[],
                }))
            }
            FloatType::F16 => {
                Values::F16(copied(&matrix, ArenaSlice::zeroed(rows * columns), |row| match row {
                    FloatSlice::F16(row) => row,
                    _ => &[],
                }))
            }
            FloatType::Bf16 => {
                Values::Bf16(copied(&matrix, ArenaSlice::zeroed(rows * columns), |row| match row {
                    FloatSlice::Bf16(row) => row,
                    _ => &[],
                }))
            }
        };
        Self { first_row: 0, rows, columns, values: Arc::new(values) }
    }

    /// `(rows, columns)`.
    pub(super) fn dim(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    pub(super) fn bytes(&self) -> usize {
        let element = match &*self.values {
            Values::F32(_) => size_of::<f32>(),
            Values::F16(_) | Values::Bf16(_) => size_of::<f16>(),
        };
        self.rows * self.columns * element
    }

    /// These of its rows, which stay where they are.
    pub(super) fn part(&self, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        Self { first_row: self.first_row + rows.start, rows: rows.len(), ..self.clone() }
    }

    fn view<'a, T>(&self, values: &'a [T]) -> ArrayView2<'a, T> {
        let first = self.first_row * self.columns;
        let values = &values[first..first + self.rows * self.columns];
        ArrayView2::from_shape(self.dim(), values).expect("as many values as the matrix had")
    }

    /// `out += matrix[row]`.
    pub(super) fn add_row(&self, row: usize, out: ArrayViewMut1<'_, f32>) {
        let row = self.first_row + row;
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

/// Bytes that one task copies: outweighs handing it to another thread.
const TASK_BYTES: usize = 1 << 20;

/// The rows of a matrix in `values`. `typed` has the elements of a row of the matrix's type.
fn copied<T: Element>(
    matrix: &FloatMatrix<'_>,
    mut values: ArenaSlice<T>,
    typed: impl for<'a> Fn(FloatSlice<'a>) -> &'a [T] + Sync,
) -> ArenaSlice<T> {
    let columns = matrix.dim().1.max(1);
    let rows = (TASK_BYTES / size_of::<T>() / columns).max(1);
    values.par_chunks_mut(rows * columns).enumerate().for_each(|(index, block)| {
        let first = index * rows;
        let mut targets = block.chunks_exact_mut(columns);
        matrix.read(first..first + targets.len(), &mut |row| {
            if let Some(target) = targets.next() {
                target.copy_from_slice(typed(row));
            }
        });
    });
    values
}

fn add(mut out: ArrayViewMut1<'_, f32>, values: impl Iterator<Item = f32>) {
    out.iter_mut().zip(values).for_each(|(out, value)| *out += value);
}
