//! A floating-point matrix read row by row, as the layer sees it: `[N, K]`, however it is stored.

use std::ops::Range;

use half::{bf16, f16};
use int8_core::{Element, FloatSlice, FloatType};

use super::convert::f64_to_f32;
use super::{CheckpointError, DType, Mxfp4, TensorView};

/// The rows of a matrix `[N, K]` of F32, F16, BF16, F64 (rounded to f32) or MXFP4 (as bf16).
///
/// A row that lies in one piece and aligned is borrowed from the mapped file. Rows of a transposed or strided matrix, of
/// F64 and of unaligned elements pass through a scratch block.
#[derive(Debug, Clone, Copy)]
pub struct FloatRows<'a> {
    /// What is read instead of all that follows but `order`.
    mxfp4: Option<Mxfp4<'a>>,
    /// From the first element to the last.
    bytes: &'a [u8],
    dtype: DType,
    /// Stored rows `[.., K]`.
    dim: (usize, usize),
    /// Elements between two rows, and between two columns.
    strides: (usize, usize),
    /// The stored row of each row; `None`: all in their order.
    order: Option<&'a [usize]>,
}

/// Bytes of a scratch block: with the codes that are made of it, it stays in a core's second-level cache.
const SCRATCH_BYTES: usize = 128 << 10;

/// Rows of a scratch block whose columns lie contiguous: they are read as cache lines of 16 to 32 elements, each to be used up
/// by one block.
const SCRATCH_ROWS: usize = 64;

impl<'a> FloatRows<'a> {
    /// The matrix `tensor`, or its transpose.
    ///
    /// # Errors
    /// [`CheckpointError::Shape`] if it is no matrix, [`CheckpointError::Dtype`] if it is not of floating-point numbers.
    pub fn new(tensor: &TensorView<'a>, transposed: bool) -> Result<Self, CheckpointError> {
        let (rows, columns) = tensor.matrix_shape()?;
        let dtype = tensor.dtype();
        // Integers could be read as numbers, but as a weight they are codes whose scales are not known.
        if !dtype.is_float() {
            return Err(CheckpointError::Dtype {
                file: tensor.file().to_owned(),
                tensor: tensor.name().to_owned(),
                expected: "F32, F16 or BF16",
                found: dtype,
                help: "Integer weights are read as int8 only with bitsandbytes' scales (SCB) beside them",
            });
        }
        let strides = match tensor.strides {
            Some(&[row, column]) => (row, column),
            _ => (columns, 1),
        };
        let (dim, strides) = match transposed {
            true => ((columns, rows), (strides.1, strides.0)),
            false => ((rows, columns), strides),
        };
        Ok(Self { mxfp4: None, bytes: tensor.bytes, dtype, dim, strides, order: None })
    }

    /// A matrix in MXFP4.
    pub(crate) fn of_mxfp4(matrix: Mxfp4<'a>) -> Self {
        let (rows, inner) = matrix.dim();
        Self {
            mxfp4: Some(matrix),
            bytes: &[],
            dtype: DType::BF16,
            dim: (rows, inner),
            strides: (inner, 1),
            order: None,
        }
    }

    /// These rows, in this order.
    ///
    /// # Panics
    /// When a row is read that is not there.
    pub(crate) fn select(self, order: Option<&'a [usize]>) -> Self {
        Self { order, ..self }
    }

    /// Shape `(N, K)`.
    pub fn dim(&self) -> (usize, usize) {
        (self.order.map_or(self.dim.0, <[usize]>::len), self.dim.1)
    }

    /// The type in which rows are read.
    pub fn float_type(&self) -> FloatType {
        match self.dtype {
            DType::F16 => FloatType::F16,
            DType::BF16 => FloatType::Bf16,
            _ => FloatType::F32,
        }
    }

    /// Calls `each` for each of `rows`, in order, with its K elements.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn read(&self, rows: Range<usize>, each: &mut dyn FnMut(FloatSlice<'_>)) {
        if let Some(matrix) = &self.mxfp4 {
            let mut row = vec![bf16::ZERO; self.dim.1];
            return rows.for_each(|index| {
                matrix.read_row(self.stored(index), &mut row);
                each(FloatSlice::Bf16(&row));
            });
        }
        match self.dtype {
            DType::F16 => self.read_as(rows, each, f16::from_le_bytes),
            DType::BF16 => self.read_as(rows, each, bf16::from_le_bytes),
            DType::F32 => self.read_as(rows, each, f32::from_le_bytes),
            _ => self.read_as(rows, each, |bytes| f64_to_f32(f64::from_le_bytes(bytes))),
        }
    }

    /// The stored row of row `index`.
    fn stored(&self, index: usize) -> usize {
        self.order.map_or(index, |order| order[index])
    }

    fn read_as<T: Element + Default + bytemuck::AnyBitPattern, const SIZE: usize>(
        &self,
        rows: Range<usize>,
        each: &mut dyn FnMut(FloatSlice<'_>),
        decode: impl Fn([u8; SIZE]) -> T,
    ) {
        let inner = self.dim.1;
        assert!(rows.end <= self.dim().0, "rows of the matrix");
        if inner == 0 {
            return rows.for_each(|_| each(T::slice(&[])));
        }
        let is_stored_as_read = size_of::<T>() == SIZE && cfg!(target_endian = "little");
        if let Ok(elements) = bytemuck::try_cast_slice::<u8, T>(self.bytes)
            && is_stored_as_read
            && (self.strides.1 == 1 || inner == 1)
        {
            return rows.for_each(|row| {
                each(T::slice(&elements[self.stored(row) * self.strides.0..][..inner]));
            });
        }
        let least = if self.strides.1 == 1 { 1 } else { SCRATCH_ROWS };
        let block = (SCRATCH_BYTES / (inner * size_of::<T>())).max(least).min(rows.len());
        let mut values = vec![T::default(); block * inner];
        for first in rows.clone().step_by(block.max(1)) {
            let block = first..rows.end.min(first + block);
            let values = &mut values[..block.len() * inner];
            self.gather(block, values, &decode);
            values.chunks_exact(inner).for_each(|row| each(T::slice(row)));
        }
    }

    /// The rows `block` into `out`, row-major.
    fn gather<T, const SIZE: usize>(
        &self,
        block: Range<usize>,
        out: &mut [T],
        decode: &impl Fn([u8; SIZE]) -> T,
    ) {
        let (elements, inner) = (self.bytes.as_chunks::<SIZE>().0, self.dim.1);
        let (row_stride, column_stride) = self.strides;
        if column_stride == 1 {
            for (row, out) in block.zip(out.chunks_exact_mut(inner)) {
                let row = &elements[self.stored(row) * row_stride..][..inner];
                row.iter().zip(out).for_each(|(element, out)| *out = decode(*element));
            }
            return;
        }
        for column in 0..inner {
            let out = out[column..].iter_mut().step_by(inner);
            let column = &elements[column * column_stride..];
            if row_stride == 1 && self.order.is_none() {
                // One cache line after the other.
                let column = &column[block.clone()];
                column.iter().zip(out).for_each(|(element, out)| *out = decode(*element));
            } else {
                for (row, out) in block.clone().zip(out) {
                    *out = decode(column[self.stored(row) * row_stride]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix `[rows, columns]` whose element `(r, c)` is `100·r + c`, its bytes, and where they begin in a buffer.
    fn bytes(dtype: DType, shape: [usize; 2], strides: [usize; 2], offset: usize) -> Vec<u8> {
        let size = dtype.bits() / 8;
        let last: usize = shape.iter().zip(strides).map(|(dim, stride)| dim.saturating_sub(1) * stride).sum();
        let mut bytes = vec![0xFF; offset + (last + 1) * size];
        for (row, column) in (0..shape[0]).flat_map(|row| (0..shape[1]).map(move |column| (row, column))) {
            let value = f32::from(u16::try_from(100 * row + column).expect("small"));
            let at = offset + (row * strides[0] + column * strides[1]) * size;
            match dtype {
                DType::F16 => bytes[at..][..2].copy_from_slice(&f16::from_f32(value).to_le_bytes()),
                DType::BF16 => bytes[at..][..2].copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
                DType::F32 => bytes[at..][..4].copy_from_slice(&value.to_le_bytes()),
                _ => bytes[at..][..8].copy_from_slice(&f64::from(value).to_le_bytes()),
            }
        }
        bytes
    }

    fn widened(row: FloatSlice<'_>) -> Vec<f32> {
        match row {
            FloatSlice::F32(row) => row.to_vec(),
            FloatSlice::F16(row) => row.iter().map(|value| value.to_f32()).collect(),
            FloatSlice::Bf16(row) => row.iter().map(|value| value.to_f32()).collect(),
        }
    }

    /// Row-major, transposed by its strides, a slice of a wider matrix; aligned or not; selected or not; whole and in part.
    #[test]
    fn rows_are_the_same_however_they_lie() {
        let shapes = [[0, 3], [3, 0], [1, 1], [5, 7], [70, 3], [3, 1], [150, 2]];
        let dtypes = [DType::F16, DType::BF16, DType::F32, DType::F64];
        for (dtype, shape) in dtypes.into_iter().flat_map(|dtype| shapes.map(|shape| (dtype, shape))) {
            let [rows, columns] = shape;
            for strides in [[columns, 1], [1, rows], [columns + 2, 1], [3 * columns, 2]] {
                for offset in [0, 1] {
                    let buffer = bytes(dtype, shape, strides, offset);
                    let bytes = &buffer[offset..];
                    let is_plain = strides == [columns, 1];
                    let tensor = TensorView {
                        file: "file",
                        name: "name",
                        dtype,
                        shape: &shape,
                        bytes: if is_plain { &bytes[..rows * columns * dtype.bits() / 8] } else { bytes },
                        strides: (!is_plain).then_some(&strides[..]),
                    };
                    check(&tensor, false);
                    check(&tensor, true);
                }
            }
        }
    }

    fn check(tensor: &TensorView<'_>, transposed: bool) {
        let all = FloatRows::new(tensor, transposed).expect("a matrix");
        let (rows, inner) = all.dim();
        let order: Vec<usize> = (0..rows).rev().step_by(2).collect();
        for (matrix, order) in [(all, (0..rows).collect()), (all.select(Some(&order)), order.clone())] {
            let count = matrix.dim().0;
            for range in [0..count, count / 3..count / 2, count / 2..count] {
                let mut next = range.start;
                matrix.read(range.clone(), &mut |row| {
                    assert_eq!(row.float_type(), matrix.float_type());
                    let value = |k| if transposed { 100 * k + order[next] } else { 100 * order[next] + k };
                    let value = |k| f32::from(u16::try_from(value(k)).expect("small"));
                    let value = |k| match tensor.dtype() {
                        DType::F16 => f16::from_f32(value(k)).to_f32(),
                        DType::BF16 => bf16::from_f32(value(k)).to_f32(),
                        _ => value(k),
                    };
                    let expected: Vec<f32> = (0..inner).map(value).collect();
                    assert_eq!(widened(row), expected, "row {next} of {tensor:?}, transposed: {transposed}");
                    next += 1;
                });
                assert_eq!(next, range.end);
            }
        }
    }
}
