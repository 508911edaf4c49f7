//! One stored tensor, and reading numbers out of it.

use std::borrow::Cow;
use std::ops::Range;

use half::{bf16, f16};
use ndarray::{Array2, ArrayView2};

use super::CheckpointError;
use super::dtype::DType;
use super::element::{self, ReadAs};
use super::error::Dims;
use super::strided;

/// Bytes of a matrix that are in memory at once while [its columns](TensorView::columns_releasing) are read.
const RELEASED_BYTES: usize = 8 << 20;

/// A tensor as it lies in its file: name, dtype, shape, and its elements, little-endian. In safetensors files they lie
/// row-major; in PyTorch files they may lie in another order (transposes), and are brought into this one when read.
///
/// Nothing is read before a conversion. Conversions work at any alignment.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    pub(super) file: &'a str,
    pub(super) name: &'a str,
    pub(super) dtype: DType,
    pub(super) shape: &'a [usize],
    /// From the first element to the last.
    pub(super) bytes: &'a [u8],
    /// In elements; `None` for row-major, where `bytes` are the tensor's and nothing else.
    pub(super) strides: Option<&'a [usize]>,
}

impl<'a> TensorView<'a> {
    /// The file that holds it, as in error messages.
    pub fn file(&self) -> &'a str {
        self.file
    }

    /// Its name.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// Its element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Its shape; empty for a scalar.
    pub fn shape(&self) -> &'a [usize] {
        self.shape
    }

    /// Its elements as stored, row-major, at any alignment: borrowed from the file, unless they lie there in another
    /// order.
    pub fn bytes(&self) -> Cow<'a, [u8]> {
        match self.strides {
            None => Cow::Borrowed(self.bytes),
            Some(strides) => {
                Cow::Owned(strided::gather(self.bytes, self.dtype.bits() / 8, self.shape, strides))
            }
        }
    }

    /// The size of its elements, in bytes.
    pub fn byte_len(&self) -> usize {
        match self.strides {
            None => self.bytes.len(),
            // Types of less than a byte are not in PyTorch files.
            Some(_) => self.len() * (self.dtype.bits() / 8),
        }
    }

    /// Whether its elements lie row-major in the file, so that reading them copies nothing.
    pub fn is_row_major(&self) -> bool {
        self.strides.is_none()
    }

    /// Number of elements: the product of the shape, 1 for a scalar.
    pub fn len(&self) -> usize {
        // The check of the header has shown that this does not overflow.
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// The tensor itself if it has this shape.
    ///
    /// # Errors
    /// [`CheckpointError::Shape`] with both shapes.
    pub fn expect_shape(self, expected: &[usize]) -> Result<Self, CheckpointError> {
        if self.shape == expected { Ok(self) } else { Err(self.shape_error(Dims(expected).to_string())) }
    }

    /// What lies behind the first index `index`: of `[E, N, K]`, the matrix `[N, K]` of one expert.
    ///
    /// # Errors
    /// [`CheckpointError::Selection`] if there is no such index, [`CheckpointError::Shape`] for a scalar.
    pub fn slab(&self, index: usize) -> Result<Self, CheckpointError> {
        let Some((&count, shape)) = self.shape.split_first() else {
            return Err(self.shape_error("of at least one dimension".to_owned()));
        };
        if index >= count {
            return Err(self.selection_error(format!("an index below {count}"), index.to_string()));
        }
        // Inside the tensor, so no product can overflow.
        let (bytes, strides) = match self.strides.and_then(<[usize]>::split_first) {
            None => {
                let size = self.bytes.len() / count;
                (&self.bytes[index * size..][..size], None)
            }
            Some((stride, strides)) => {
                (&self.bytes[index * stride * (self.dtype.bits() / 8)..], Some(strides))
            }
        };
        Ok(Self { shape, bytes, strides, ..*self })
    }

    /// Of a matrix `[n·rows, columns]` the rows `index·rows..(index + 1)·rows`.
    ///
    /// # Errors
    /// [`CheckpointError::Shape`] for another shape or a matrix that is not row-major, [`CheckpointError::Selection`] if there
    /// are no such rows.
    pub(crate) fn stacked(&self, index: usize, shape: &'a [usize; 2]) -> Result<Self, CheckpointError> {
        let [rows, columns] = *shape;
        let all = match *self.shape {
            [all, width]
                if width == columns && rows != 0 && all.is_multiple_of(rows) && self.is_row_major() =>
            {
                all
            }
            _ => return Err(self.shape_error(format!("row-major [n·{rows}, {columns}]"))),
        };
        if index >= all / rows {
            return Err(self.selection_error(format!("an index below {}", all / rows), index.to_string()));
        }
        let size = self.bytes.len() / (all / rows);
        Ok(Self { shape, bytes: &self.bytes[index * size..][..size], ..*self })
    }

    /// `(rows, columns)` of a matrix.
    ///
    /// # Errors
    /// [`CheckpointError::Shape`] if there are not two dimensions.
    pub fn matrix_shape(&self) -> Result<(usize, usize), CheckpointError> {
        match *self.shape {
            [rows, columns] => Ok((rows, columns)),
            _ => Err(self.shape_error("of two dimensions".to_owned())),
        }
    }

    /// All elements, row-major. See [`ReadAs`] for what is read from what.
    ///
    /// # Errors
    /// [`CheckpointError::Dtype`] if `T` is not read from this dtype.
    pub fn to_vec<T: ReadAs>(&self) -> Result<Vec<T>, CheckpointError> {
        self.decoder::<T>()?;
        let mut out = vec![T::default(); self.len()];
        element::decode(self.dtype, &self.bytes(), &mut out);
        Ok(out)
    }

    /// All elements as f32; F64 is rounded, everything else exact.
    ///
    /// # Errors
    /// [`CheckpointError::Dtype`] naming the dtype if it is no float, 8- or 16-bit integer or BOOL.
    pub fn to_f32(&self) -> Result<Vec<f32>, CheckpointError> {
        self.to_vec()
    }

    /// All elements of a matrix as f32 `[rows, columns]`.
    ///
    /// # Errors
    /// [`CheckpointError::Shape`] if this is no matrix; as [`Self::to_f32`].
    pub fn to_matrix_f32(&self) -> Result<Array2<f32>, CheckpointError> {
        let shape = self.matrix_shape()?;
        Array2::from_shape_vec(shape, self.to_f32()?).map_err(|error| self.shape_error(error.to_string()))
    }

    /// The elements with the bits they are stored with: borrowed from the file where alignment and byte order allow it,
    /// copied otherwise.
    ///
    /// # Errors
    /// [`CheckpointError::Dtype`] if the tensor is not stored as `T`.
    pub fn stored<T: ReadAs + bytemuck::AnyBitPattern>(&self) -> Result<Cow<'a, [T]>, CheckpointError> {
        if self.dtype != T::SAME {
            return Err(self.dtype_error(T::SAME.name()));
        }
        match bytemuck::try_cast_slice(self.bytes) {
            Ok(elements) if cfg!(target_endian = "little") && self.is_row_major() => {
                Ok(Cow::Borrowed(elements))
            }
            _ => self.to_vec().map(Cow::Owned),
        }
    }

    /// All elements of an F16 tensor, bits as stored.
    ///
    /// # Errors
    /// [`CheckpointError::Dtype`] for any other dtype.
    pub fn to_f16(&self) -> Result<Vec<f16>, CheckpointError> {
        self.to_vec()
    }

    /// All elements of a BF16 tensor, bits as stored.
    ///
    /// # Errors
    /// [`CheckpointError::Dtype`] for any other dtype.
    pub fn to_bf16(&self) -> Result<Vec<bf16>, CheckpointError> {
        self.to_vec()
    }

    /// The elements of an I8 tensor, borrowed.
    ///
    /// # Errors
    /// [`CheckpointError::Dtype`] for any other dtype, [`CheckpointError::Value`] if they do not lie row-major.
    pub fn as_i8(&self) -> Result<&'a [i8], CheckpointError> {
        match (self.dtype, self.strides) {
            (DType::I8, None) => Ok(bytemuck::cast_slice(self.bytes)),
            (DType::I8, Some(strides)) => Err(CheckpointError::Value {
                file: self.file.to_owned(),
                tensor: self.name.to_owned(),
                expected: "elements one after the other",
                found: format!("strides {}", Dims(strides)),
                help: "Save it again after .contiguous()",
            }),
            _ => Err(self.dtype_error("I8")),
        }
    }

    /// Reads the rows `rows` of a tensor of at least one dimension into `out`, which has room for exactly these: a row is
    /// everything behind the first index.
    ///
    /// # Errors
    /// [`CheckpointError::Selection`] if there are no such rows or `out` has another size,
    /// [`CheckpointError::Dtype`] if `T` is not read from this dtype.
    pub fn read_rows<T: ReadAs>(&self, rows: Range<usize>, out: &mut [T]) -> Result<(), CheckpointError> {
        self.decoder::<T>()?;
        let Some((&height, row)) = self.shape.split_first() else {
            return Err(self.shape_error("of at least one dimension".to_owned()));
        };
        if rows.start > rows.end || rows.end > height {
            return Err(self.selection_error(format!("rows inside 0..{height}"), format!("{rows:?}")));
        }
        let width: usize = row.iter().product();
        // Inside the tensor, so neither product can overflow.
        let elements = (rows.end - rows.start) * width;
        if out.len() != elements {
            let (expected, found) =
                (format!("room for {elements} elements"), format!("room for {}", out.len()));
            return Err(self.selection_error(expected, found));
        }
        let element = self.dtype.bits() / 8;
        match self.strides {
            None => {
                let begin = rows.start * width * element;
                element::decode(self.dtype, &self.bytes[begin..][..elements * element], out);
            }
            Some(_) if elements == 0 => {}
            Some(strides) => {
                let shape = [&[rows.len()], row].concat();
                let bytes = &self.bytes[rows.start * strides[0] * element..];
                element::decode(self.dtype, &strided::gather(bytes, element, &shape, strides), out);
            }
        }
        Ok(())
    }

    /// Reads the elements `elements`, counted row-major, into `out`, which has room for exactly these.
    ///
    /// # Errors
    /// As [`Self::read_rows`].
    pub fn read_elements<T: ReadAs>(
        &self,
        elements: Range<usize>,
        out: &mut [T],
    ) -> Result<(), CheckpointError> {
        let (flat, bytes) = ([self.len()], self.bytes());
        TensorView { shape: &flat, ..self.with_bytes(&bytes) }.read_rows(elements, out)
    }

    /// The same tensor with these as its [`bytes`](Self::bytes), which are row-major: read once, used often.
    pub(crate) fn with_bytes<'b>(&self, bytes: &'b [u8]) -> TensorView<'b>
    where
        'a: 'b,
    {
        TensorView { bytes, strides: None, ..*self }
    }

    /// [`Self::read_rows`] as f32.
    ///
    /// # Errors
    /// As [`Self::read_rows`].
    pub fn read_rows_f32(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), CheckpointError> {
        self.read_rows(rows, out)
    }

    /// Gathers columns of a matrix `[N, K]`: the result is `T [N, columns.len()]` row-major, columns in the order given
    /// (repetitions allowed). Touches only the cache lines that hold them, on several threads when they are many.
    ///
    /// # Errors
    /// [`CheckpointError::Shape`] if this is no matrix, [`CheckpointError::Selection`] for a column ≥ K,
    /// [`CheckpointError::Dtype`] if `T` is not read from this dtype.
    pub fn columns<T: ReadAs>(&self, columns: &[usize]) -> Result<Vec<T>, CheckpointError> {
        self.columns_releasing(columns, |_| {})
    }

    /// [`columns`](Self::columns), and `release` of the bytes that were read, each [`RELEASED_BYTES`] of them: a column has an element in
    /// nearly every page of the matrix.
    pub(crate) fn columns_releasing<T: ReadAs>(
        &self,
        columns: &[usize],
        mut release: impl FnMut(Range<usize>),
    ) -> Result<Vec<T>, CheckpointError> {
        let decoder = self.decoder::<T>()?;
        let (rows, width) = self.matrix_shape()?;
        if let Some(column) = columns.iter().find(|&&column| column >= width) {
            return Err(self.selection_error(format!("columns below {width}"), format!("column {column}")));
        }
        let Some(elements) = rows.checked_mul(columns.len()) else {
            let found = format!("{} columns of {rows} rows", columns.len());
            return Err(self.selection_error("a selection that fits into memory".to_owned(), found));
        };
        let element = self.dtype.bits() / 8;
        let mut out = vec![T::default(); elements];
        if let Some(&[row_stride, column_stride]) = self.strides {
            if !columns.is_empty() {
                for (row, out) in out.chunks_exact_mut(columns.len()).enumerate() {
                    for (out, &column) in out.iter_mut().zip(columns) {
                        let at = (row * row_stride + column * column_stride) * element;
                        *out = decoder(&self.bytes[at..][..element]);
                    }
                }
            }
            return Ok(out);
        }
        let row = width * element;
        let together = (RELEASED_BYTES / row.max(1)).max(1);
        let parts = out.chunks_mut((together * columns.len()).max(1));
        for (out, bytes) in parts.zip(self.bytes.chunks((together * row).max(1))) {
            element::gather(decoder, element, bytes, row, columns, out);
            let begin = bytes.as_ptr().addr() - self.bytes.as_ptr().addr();
            release(begin..begin + bytes.len());
        }
        Ok(out)
    }

    /// One column of a matrix as f32 `[N]`.
    ///
    /// # Errors
    /// As [`Self::columns`].
    pub fn column_f32(&self, column: usize) -> Result<Vec<f32>, CheckpointError> {
        self.columns(&[column])
    }

    /// The codes of an I8 matrix.
    pub(super) fn codes(&self) -> Result<ArrayView2<'a, i8>, CheckpointError> {
        let shape = self.matrix_shape()?;
        ArrayView2::from_shape(shape, self.as_i8()?).map_err(|error| self.shape_error(error.to_string()))
    }

    fn decoder<T: ReadAs>(&self) -> Result<element::sealed::Decoder<T>, CheckpointError> {
        T::decoder(self.dtype).ok_or_else(|| self.dtype_error(T::FROM))
    }

    pub(crate) fn shape_error(&self, expected: String) -> CheckpointError {
        CheckpointError::Shape {
            file: self.file.to_owned(),
            tensor: self.name.to_owned(),
            expected,
            found: self.shape.to_vec(),
        }
    }

    pub(super) fn dtype_error(&self, expected: &'static str) -> CheckpointError {
        let help = match self.dtype {
            DType::F8E4M3 | DType::F8E5M2 | DType::F8E8M0 | DType::F8E4M3Fnuz | DType::F8E5M2Fnuz => {
                "8-bit float checkpoints are not read; use the model's 16-bit version"
            }
            DType::F4 | DType::F6E2M3 | DType::F6E3M2 => {
                "4- and 6-bit checkpoints are not read; use the model's 16-bit version"
            }
            _ if expected.contains("F32") => {
                "Check that this is the checkpoint you mean; its weights should be F32, F16 or BF16"
            }
            _ => "Check that this is the checkpoint you mean, and that it is complete",
        };
        CheckpointError::Dtype {
            file: self.file.to_owned(),
            tensor: self.name.to_owned(),
            expected,
            found: self.dtype,
            help,
        }
    }

    fn selection_error(&self, expected: String, found: String) -> CheckpointError {
        CheckpointError::Selection {
            file: self.file.to_owned(),
            tensor: self.name.to_owned(),
            expected,
            found,
        }
    }
}
