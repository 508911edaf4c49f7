//! Matrices whose element type is a value instead of a type parameter, so that each kernel is compiled once, in this
//! crate, and not again for every pair of element types in every crate that calls it.

use std::marker::PhantomData;

use half::{bf16, f16};
use int8_core::{Element, FloatSlice, FloatType};
use ndarray::{ArrayView2, ArrayViewMut2};

use crate::convert;
use crate::error::Error;
use crate::prefetch::Destination;

/// Whether a result replaces or is added to what the output holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Store {
    /// `out = y`.
    #[default]
    Overwrite,
    /// `out = out + y`, added in f32 and rounded once: a residual connection.
    Accumulate,
}

/// Checks that the rows of a matrix are contiguous.
pub(crate) fn rows_of<T>(matrix: ArrayView2<'_, T>, what: &'static str) -> Result<(), Error> {
    let (rows, columns) = matrix.dim();
    if columns <= 1 || rows == 0 || matrix.strides()[1] == 1 {
        return Ok(());
    }
    Err(Error::NotRowMajor { what, rows, columns, strides: matrix.strides().to_vec() })
}

/// A matrix that is read: `[rows, columns]`, contiguous rows.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    first: *const (),
    float_type: FloatType,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Elements between two rows.
    stride: isize,
    _borrow: PhantomData<&'a [f32]>,
}

// SAFETY: it stands for a shared borrow of plain numbers.
unsafe impl Sync for Source<'_> {}
// SAFETY: as for `Sync`.
unsafe impl Send for Source<'_> {}

impl<'a> Source<'a> {
    /// # Errors
    /// [`Error::NotRowMajor`].
    pub(crate) fn new<T: Element>(matrix: ArrayView2<'a, T>, what: &'static str) -> Result<Self, Error> {
        rows_of(matrix, what)?;
        let (rows, columns) = matrix.dim();
        let (first, float_type, stride) = (matrix.as_ptr().cast(), T::TYPE, matrix.strides()[0]);
        Ok(Self { first, float_type, rows, columns, stride, _borrow: PhantomData })
    }

    /// The element type.
    pub(crate) fn float_type(&self) -> FloatType {
        self.float_type
    }

    /// One row.
    ///
    /// # Panics
    /// If there is no such row.
    #[inline]
    pub(crate) fn row(&self, row: usize) -> FloatSlice<'a> {
        assert!(row < self.rows);
        let at = self.stride * convert::offset(row);
        // SAFETY: `float_type` is the element type of the matrix that was borrowed for 'a; its rows are contiguous, and this
        // one is inside it by the assertion.
        unsafe {
            match self.float_type {
                FloatType::F32 => FloatSlice::F32(std::slice::from_raw_parts(
                    self.first.cast::<f32>().offset(at),
                    self.columns,
                )),
                FloatType::F16 => FloatSlice::F16(std::slice::from_raw_parts(
                    self.first.cast::<f16>().offset(at),
                    self.columns,
                )),
                FloatType::Bf16 => FloatSlice::Bf16(std::slice::from_raw_parts(
                    self.first.cast::<bf16>().offset(at),
                    self.columns,
                )),
            }
        }
    }
}

/// A matrix that several tasks write at once, each its own part: contiguous rows.
pub(crate) struct Target<'a> {
    first: *mut (),
    float_type: FloatType,
    /// Elements between two rows.
    stride: isize,
    _borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: only `slice` reads or writes through the pointer, and its contract forbids overlap.
unsafe impl Sync for Target<'_> {}
// SAFETY: the exclusive borrow it stands for may move to another thread.
unsafe impl Send for Target<'_> {}

impl<'a> Target<'a> {
    /// # Errors
    /// [`Error::NotRowMajor`].
    pub(crate) fn new<T: Element>(
        matrix: &'a mut ArrayViewMut2<'_, T>,
        what: &'static str,
    ) -> Result<Self, Error> {
        rows_of(matrix.view(), what)?;
        let (first, float_type, stride) = (matrix.as_mut_ptr().cast(), T::TYPE, matrix.strides()[0]);
        Ok(Self { first, float_type, stride, _borrow: PhantomData })
    }

    /// Elements between two rows.
    pub(crate) fn stride(&self) -> isize {
        self.stride
    }

    /// Where `width` elements of `row` and of those below it are.
    pub(crate) fn destination(&self, row: usize, column: usize, width: usize) -> Destination {
        let size = self.float_type.bytes();
        destination(self.first.cast(), size, self.stride, row, column, width)
    }

    /// The element type.
    pub(crate) fn float_type(&self) -> FloatType {
        self.float_type
    }

    /// `width` elements of a row, from `column` on.
    ///
    /// # Safety
    /// T is the [`float_type`](Self::float_type), the elements lie in the matrix, and no other slice of them is alive.
    #[expect(
        clippy::mut_from_ref,
        reason = "disjoint parts of one exclusive borrow; the contract forbids overlap"
    )]
    #[inline(always)]
    pub(crate) unsafe fn slice<T: Element>(&self, row: usize, column: usize, width: usize) -> &mut [T] {
        debug_assert_eq!(self.float_type, T::TYPE);
        let at = self.stride * convert::offset(row) + convert::offset(column);
        // SAFETY: inside the borrowed matrix, whose type T is, and not aliased, by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.first.cast::<T>().offset(at), width) }
    }
}

/// The integer output of the plain product.
pub(crate) struct IntegerTarget<'a> {
    first: *mut i32,
    /// Elements between two rows.
    stride: isize,
    _borrow: PhantomData<&'a mut [i32]>,
}

// SAFETY: as for `Target`.
unsafe impl Sync for IntegerTarget<'_> {}
// SAFETY: as for `Target`.
unsafe impl Send for IntegerTarget<'_> {}

impl<'a> IntegerTarget<'a> {
    /// # Errors
    /// [`Error::NotRowMajor`].
    pub(crate) fn new(matrix: &'a mut ArrayViewMut2<'_, i32>, what: &'static str) -> Result<Self, Error> {
        rows_of(matrix.view(), what)?;
        Ok(Self { first: matrix.as_mut_ptr(), stride: matrix.strides()[0], _borrow: PhantomData })
    }

    /// Where `width` elements of `row` and of those below it are.
    pub(crate) fn destination(&self, row: usize, column: usize, width: usize) -> Destination {
        destination(self.first.cast(), size_of::<i32>(), self.stride, row, column, width)
    }

    /// `width` elements of a row, from `column` on.
    ///
    /// # Safety
    /// The elements lie in the matrix, and no other slice of them is alive.
    #[expect(
        clippy::mut_from_ref,
        reason = "disjoint parts of one exclusive borrow; the contract forbids overlap"
    )]
    pub(crate) unsafe fn slice(&self, row: usize, column: usize, width: usize) -> &mut [i32] {
        // SAFETY: inside the borrowed matrix, and not aliased, by this function's contract.
        unsafe {
            let start = self.first.offset(self.stride * convert::offset(row)).add(column);
            std::slice::from_raw_parts_mut(start, width)
        }
    }
}

/// Of a matrix of elements of `size` bytes, `stride` elements between two rows.
fn destination(
    first: *const u8,
    size: usize,
    stride: isize,
    row: usize,
    column: usize,
    width: usize,
) -> Destination {
    // The stride of a single row may be any number.
    let stride = stride.wrapping_mul(convert::offset(size));
    let first = first.wrapping_offset(stride.wrapping_mul(convert::offset(row))).wrapping_add(column * size);
    Destination { first, stride, width: width * size }
}
