//! A matrix in floating point, read row by row from where it lies.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use int8_core::{FloatSlice, FloatType};
use int8_cpu::WeightRows;
use ndarray::{ArcArray2, Array2, Axis};

use super::StoredWeight;
use crate::Error;
use crate::checkpoint::{FloatRows, TensorView};

/// A matrix `[rows, columns]` of f32, f16 or bf16: stored weights stacked along their rows, or one in memory. It holds no
/// elements of a checkpoint; whoever needs them reads the rows.
///
/// Its type is that of its parts if all share one, else f32, which has all their values. Codes are f32.
#[derive(Debug, Clone)]
pub struct FloatMatrix<'a> {
    parts: Vec<Source<'a>>,
    /// Of those of the parts.
    columns: Range<usize>,
    float_type: FloatType,
}

#[derive(Debug, Clone)]
enum Source<'a> {
    Stored(StoredWeight<'a>),
    /// Shared by the clones.
    Memory(ArcArray2<f32>),
}

impl Source<'_> {
    fn rows(&self) -> usize {
        match self {
            Self::Stored(StoredWeight::Float(rows)) => rows.dim().0,
            Self::Stored(StoredWeight::Int8(rows)) => rows.dim().0,
            Self::Memory(matrix) => matrix.nrows(),
        }
    }

    fn float_type(&self) -> FloatType {
        match self {
            Self::Stored(StoredWeight::Float(rows)) => rows.float_type(),
            Self::Stored(StoredWeight::Int8(_)) | Self::Memory(_) => FloatType::F32,
        }
    }
}

impl<'a> FloatMatrix<'a> {
    /// The weights one below the other; they have equal widths.
    pub(crate) fn stack(parts: Vec<StoredWeight<'a>>, columns: usize) -> Self {
        let parts: Vec<_> = parts.into_iter().map(Source::Stored).collect();
        let mut types = parts.iter().map(Source::float_type);
        let first = types.next().unwrap_or(FloatType::F32);
        let float_type = if types.all(|other| other == first) { first } else { FloatType::F32 };
        Self { parts, columns: 0..columns, float_type }
    }

    /// These of its columns.
    ///
    /// # Panics
    /// If it has no such columns.
    #[must_use]
    pub(crate) fn narrowed(self, columns: Range<usize>) -> Self {
        assert!(columns.start <= columns.end && columns.end <= self.columns.len(), "columns {columns:?}");
        let first = self.columns.start;
        Self { columns: first + columns.start..first + columns.end, ..self }
    }

    /// Shape `(rows, columns)`.
    pub fn dim(&self) -> (usize, usize) {
        (self.parts.iter().map(Source::rows).sum(), self.columns.len())
    }

    /// Type of its elements.
    pub fn float_type(&self) -> FloatType {
        self.float_type
    }

    /// Bytes of all elements.
    pub fn bytes(&self) -> usize {
        let (rows, columns) = self.dim();
        rows * columns * self.float_type.bytes()
    }

    /// Calls `each` for each of `rows`, in order, with its elements, of the matrix's type.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn read(&self, rows: Range<usize>, each: &mut dyn FnMut(FloatSlice<'_>)) {
        assert!(rows.end <= self.dim().0, "rows of the matrix");
        let mut wide = Vec::new();
        let mut each = |row: FloatSlice<'_>| {
            let columns = self.columns.clone();
            each(match row {
                FloatSlice::F32(row) => FloatSlice::F32(&row[columns]),
                FloatSlice::F16(row) => FloatSlice::F16(&row[columns]),
                FloatSlice::Bf16(row) => FloatSlice::Bf16(&row[columns]),
            });
        };
        let mut first = 0;
        for part in &self.parts {
            let end = first + part.rows();
            let inside = rows.start.clamp(first, end) - first..rows.end.clamp(first, end) - first;
            first = end;
            if inside.is_empty() {
                continue;
            }
            match part {
                Source::Memory(matrix) => {
                    for row in inside {
                        each(FloatSlice::F32(matrix.row(row).as_slice().expect("standard layout")));
                    }
                }
                Source::Stored(StoredWeight::Float(stored)) if stored.float_type() == self.float_type => {
                    stored.read(inside, &mut each);
                }
                Source::Stored(StoredWeight::Float(stored)) => {
                    stored.read(inside, &mut |row| each(FloatSlice::F32(widened(row, &mut wide))));
                }
                Source::Stored(StoredWeight::Int8(stored)) => {
                    wide.resize(stored.dim().1, 0.0);
                    for row in inside {
                        stored.dequantize(row, &mut wide);
                        each(FloatSlice::F32(&wide));
                    }
                }
            }
        }
    }

    /// All elements as f32: exact.
    pub fn to_f32(&self) -> Array2<f32> {
        let mut matrix = Array2::zeros(self.dim());
        let mut targets = matrix.axis_iter_mut(Axis(0));
        let mut wide = Vec::new();
        self.read(0..self.dim().0, &mut |row| {
            if let Some(mut target) = targets.next() {
                target.assign(&ndarray::aview1(widened(row, &mut wide)));
            }
        });
        matrix
    }
}

impl From<Array2<f32>> for FloatMatrix<'_> {
    fn from(matrix: Array2<f32>) -> Self {
        matrix.into_shared().into()
    }
}

impl From<ArcArray2<f32>> for FloatMatrix<'_> {
    fn from(matrix: ArcArray2<f32>) -> Self {
        let columns = matrix.ncols();
        let matrix = if matrix.is_standard_layout() {
            matrix
        } else {
            matrix.as_standard_layout().into_owned().into_shared()
        };
        Self { parts: vec![Source::Memory(matrix)], columns: 0..columns, float_type: FloatType::F32 }
    }
}

impl WeightRows for FloatMatrix<'_> {
    fn count(&self) -> usize {
        self.dim().0
    }

    fn read(&self, rows: Range<usize>, row: &mut dyn FnMut(FloatSlice<'_>)) {
        FloatMatrix::read(self, rows, row);
    }
}

/// A row as f32: itself, or a copy in `wide`.
pub(crate) fn widened<'a>(row: FloatSlice<'a>, wide: &'a mut Vec<f32>) -> &'a [f32] {
    wide.resize(row.len(), 0.0);
    match row {
        FloatSlice::F32(row) => return row,
        FloatSlice::F16(row) => row.convert_to_f32_slice(wide),
        FloatSlice::Bf16(row) => row.convert_to_f32_slice(wide),
    }
    wide
}

/// The matrix of a tensor, in the type it is stored in (F64: f32).
///
/// # Errors
/// When the tensor is no matrix of floating-point numbers.
pub(crate) fn read_matrix<'a>(tensor: &TensorView<'a>) -> Result<FloatMatrix<'a>, Error> {
    let rows = FloatRows::new(tensor, false)?;
    Ok(FloatMatrix::stack(vec![StoredWeight::Float(rows)], rows.dim().1))
}
