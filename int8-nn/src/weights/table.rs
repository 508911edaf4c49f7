//! A table whose rows are looked up by number: in a checkpoint, or computed.

use ndarray::{ArcArray2, Array2};

use super::{FloatMatrix, read_matrix};
use crate::Error;
use crate::checkpoint::Checkpoint;

/// A matrix `[rows, columns]` of f32, f16 or bf16, of which single rows are read: an embedding. Rows of a checkpoint stay in its
/// mapped file until they are read.
#[derive(Debug, Clone)]
pub struct RowTable {
    source: Source,
    dim: (usize, usize),
}

#[derive(Debug, Clone)]
enum Source {
    Stored { checkpoint: Checkpoint, name: String },
    Computed(ArcArray2<f32>),
}

impl RowTable {
    /// The tensor `name` of a checkpoint.
    ///
    /// # Errors
    /// When it is missing, of another shape or not of floating-point numbers.
    pub(crate) fn stored(checkpoint: &Checkpoint, name: &str, shape: [usize; 2]) -> Result<Self, Error> {
        read_matrix(&checkpoint.tensor(name)?.expect_shape(&shape)?)?;
        let source = Source::Stored { checkpoint: checkpoint.clone(), name: name.to_owned() };
        Ok(Self { source, dim: (shape[0], shape[1]) })
    }

    /// Shape `(rows, columns)`.
    pub fn dim(&self) -> (usize, usize) {
        self.dim
    }

    /// The rows where they lie, in their stored type.
    ///
    /// # Errors
    /// None that a table can cause that was made; the signature is that of reading a tensor.
    pub fn matrix(&self) -> Result<FloatMatrix<'_>, Error> {
        match &self.source {
            Source::Stored { checkpoint, name } => read_matrix(&checkpoint.tensor(name)?),
            Source::Computed(matrix) => Ok(matrix.clone().into()),
        }
    }

    /// Lets the system take back the memory that holds the mapped rows: all have been read, and single ones may be again.
    pub fn release(&self) {
        if let Source::Stored { checkpoint, name } = &self.source {
            checkpoint.release(name);
        }
    }
}

impl From<Array2<f32>> for RowTable {
    fn from(matrix: Array2<f32>) -> Self {
        let dim = matrix.dim();
        Self { source: Source::Computed(matrix.into_shared()), dim }
    }
}
