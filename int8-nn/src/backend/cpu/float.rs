//! Weights in floating point: held in their stored type, multiplied in f32.

use std::ops::Range;

use half::{bf16, f16};
use int8_core::{Element, FloatSlice, FloatType};
use int8_cpu::float::product;
use int8_cpu::{ArenaSlice, Kernel, Store};
use ndarray::{ArrayView2, ArrayViewMut2};
use rayon::prelude::*;

use crate::Error;
use crate::weights::{FloatMatrix, RowTable};

/// The weight of a linear layer in floating point, in memory of its own.
#[derive(Debug)]
pub(super) struct FloatWeight {
    rows: usize,
    columns: usize,
    values: Values,
}

/// Row-major.
#[derive(Debug)]
enum Values {
    F32(ArenaSlice<f32>),
    F16(ArenaSlice<f16>),
    Bf16(ArenaSlice<bf16>),
}

impl FloatWeight {
    /// Copies these rows of a matrix.
    pub(super) fn new(matrix: &FloatMatrix<'_>, rows: Range<usize>) -> Self {
        let (count, columns) = (rows.len(), matrix.dim().1);
        let length = count * columns;
        let values = match matrix.float_type() {
            FloatType::F32 => {
                Values::F32(copied(matrix, rows, ArenaSlice::zeroed(length), |row| match row {
                    FloatSlice::F32(row) => row,
                    _ => &[],
                }))
            }
            FloatType::F16 => {
                Values::F16(copied(matrix, rows, ArenaSlice::zeroed(length), |row| match row {
                    FloatSlice::F16(row) => row,
                    _ => &[],
                }))
            }
            FloatType::Bf16 => {
                Values::Bf16(copied(matrix, rows, ArenaSlice::zeroed(length), |row| match row {
                    FloatSlice::Bf16(row) => row,
                    _ => &[],
                }))
            }
        };
        Self { rows: count, columns, values }
    }

    /// `(rows, columns)`.
    pub(super) fn dim(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    pub(super) fn bytes(&self) -> usize {
        let element = match &self.values {
            Values::F32(_) => size_of::<f32>(),
            Values::F16(_) | Values::Bf16(_) => size_of::<f16>(),
        };
        self.rows * self.columns * element
    }

    fn view<'a, T>(&self, values: &'a [T]) -> ArrayView2<'a, T> {
        ArrayView2::from_shape(self.dim(), values).expect("as many values as the matrix had")
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
        match &self.values {
            Values::F32(values) => product(kernel, x, self.view(values), bias, store, out)?,
            Values::F16(values) => product(kernel, x, self.view(values), bias, store, out)?,
            Values::Bf16(values) => product(kernel, x, self.view(values), bias, store, out)?,
        }
        Ok(())
    }
}

/// Bytes that one task copies: outweighs handing it to another thread.
const TASK_BYTES: usize = 1 << 20;

/// These rows of a matrix in `values`. `typed` has the elements of a row of the matrix's type.
fn copied<T: Element>(
    matrix: &FloatMatrix<'_>,
    from: Range<usize>,
    mut values: ArenaSlice<T>,
    typed: impl for<'a> Fn(FloatSlice<'a>) -> &'a [T] + Sync,
) -> ArenaSlice<T> {
    let columns = matrix.dim().1.max(1);
    let rows = (TASK_BYTES / size_of::<T>() / columns).max(1);
    values.par_chunks_mut(rows * columns).enumerate().for_each(|(index, block)| {
        let first = from.start + index * rows;
        let mut targets = block.chunks_exact_mut(columns);
        matrix.read(first..first + targets.len(), &mut |row| {
            if let Some(target) = targets.next() {
                target.copy_from_slice(typed(row));
            }
        });
    });
    values
}

/// `out[m] += table[rows[m]]`.
pub(super) fn add_rows(
    table: &RowTable,
    rows: impl Iterator<Item = usize>,
    out: &mut ArrayViewMut2<'_, f32>,
) -> Result<(), Error> {
    let matrix = table.matrix()?;
    for (row, mut out) in rows.zip(out.rows_mut()) {
        matrix.read(row..row + 1, &mut |row| match row {
            FloatSlice::F32(row) => out.iter_mut().zip(row).for_each(|(out, value)| *out += value),
            FloatSlice::F16(row) => out.iter_mut().zip(row).for_each(|(out, value)| *out += value.to_f32()),
            FloatSlice::Bf16(row) => out.iter_mut().zip(row).for_each(|(out, value)| *out += value.to_f32()),
        });
    }
    Ok(())
}
