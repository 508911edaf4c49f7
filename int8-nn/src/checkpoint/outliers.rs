//! Exact columns beside int8 weights: a file of its own, which other loaders do not look into.
//!
//! `int8-outliers.safetensors` holds for a layer `P` with an int8 weight `[N, K]`
//!
//! | tensor | dtype, shape | meaning |
//! |---|---|---|
//! | `P.outlier_columns` | I32 `[C]` | input dimensions, rising, each below K |
//! | `P.outlier_weight` | F16, BF16 or F32 `[C, N]` | these columns of the weight as they were before, one after the other |

use super::error::Quoted;
use super::{Checkpoint, CheckpointError, TensorView};

/// The file; not in the index, since transformers warns of tensors that it does not know.
pub(crate) const OUTLIERS: &str = "int8-outliers.safetensors";

/// The columns of one weight that are kept exactly.
#[derive(Debug, Clone)]
pub struct OutlierColumns<'a> {
    /// Input dimensions, rising.
    pub columns: Vec<usize>,
    /// Their weights `[columns, outputs]`.
    pub weights: TensorView<'a>,
}

impl Checkpoint {
    /// Whether exact columns of int8 weights are stored beside them.
    pub fn has_outlier_columns(&self) -> bool {
        self.inner.outliers.is_some()
    }

    /// The exact columns of the int8 layer `prefix` with `outputs` rows and `inputs` columns, if some are stored.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`], `Shape`, `Dtype` or `Value` when what is stored does not fit the weight.
    pub fn outlier_columns(
        &self,
        prefix: &str,
        (outputs, inputs): (usize, usize),
    ) -> Result<Option<OutlierColumns<'_>>, CheckpointError> {
        let Some(file) = &self.inner.outliers else { return Ok(None) };
        // Under the name that the weight has in the files.
        let weight = self.get(&format!("{prefix}.weight")).map(|weight| weight.name);
        let prefix = weight.and_then(|name| name.strip_suffix(".weight")).unwrap_or(prefix);
        let Some(columns) = file.get(&format!("{prefix}.outlier_columns")) else { return Ok(None) };
        let weights = file.tensor(&format!("{prefix}.outlier_weight"))?;
        let indices: Vec<i32> = columns.to_vec()?;
        let weights = weights.expect_shape(&[indices.len(), outputs])?;
        if !weights.dtype().is_float() {
            return Err(weights.dtype_error("F32, F16 or BF16"));
        }
        let indices: Vec<usize> =
            indices.iter().map(|index| usize::try_from(*index).unwrap_or(usize::MAX)).collect();
        let rising = indices.windows(2).all(|pair| pair[0] < pair[1]);
        match indices.last() {
            Some(last) if !rising || *last >= inputs => Err(CheckpointError::Value {
                file: columns.file().to_owned(),
                tensor: columns.name().to_owned(),
                expected: "rising columns of the weight",
                found: format!("{last} at the end, for {inputs} columns of {}", Quoted(prefix)),
                help: "The file belongs to another checkpoint: delete it, or convert again and keep outliers",
            }),
            _ => Ok(Some(OutlierColumns { columns: indices, weights })),
        }
    }
}
