//! Progress and result of a conversion.

use super::select::Kept;
use crate::checkpoint::{DType, TensorSpec};

/// The stage of a conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Reading, computing and writing.
    Convert,
    /// Reading again and comparing.
    Verify,
}

/// How far a conversion is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The stage.
    pub stage: Stage,
    /// Bytes of the source's tensors done.
    pub done: u64,
    /// Bytes of all tensors of the source.
    pub total: u64,
}

/// A linear layer that became int8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Int8Layer {
    /// Its weight's name.
    pub name: String,
    /// Output channels N.
    pub outputs: usize,
    /// Input features K.
    pub inputs: usize,
    /// It was stored `[in, out]` (Conv1D).
    pub transposed: bool,
    /// Bytes before.
    pub source_bytes: u64,
    /// Bytes of codes, scales and layout.
    pub written_bytes: u64,
}

/// A tensor that stayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptTensor {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub bytes: u64,
    /// Why.
    pub reason: Kept,
}

/// The result of a conversion to int8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Layers that became int8, in reading order.
    pub int8: Vec<Int8Layer>,
    /// Tensors that stayed, in reading order.
    pub kept: Vec<KeptTensor>,
    /// Tensors that were not written, tied to an embedding (PyTorch files only).
    pub tied: Vec<String>,
    /// `llm_int8_skip_modules` as written; `None` where transformers' default is the same.
    pub skip_modules: Option<Vec<String>>,
    /// The model class of transformers by which the layers were selected; `None` where names and shapes decided.
    pub class: Option<String>,
    /// Columns kept exactly beside the int8 weights.
    pub outlier_columns: usize,
    /// Bytes of the file that holds them.
    pub outlier_bytes: u64,
    /// Bytes of all tensors before.
    pub source_bytes: u64,
    /// Bytes of all tensors after, without exact columns.
    pub written_bytes: u64,
    /// Bytes completed by an interrupted run.
    pub resumed_bytes: u64,
    /// Number of weight files.
    pub shards: usize,
    /// The other files that were copied.
    pub files: Vec<String>,
    /// The result was read again and compared.
    pub verified: bool,
}

/// The result of a conversion back to floating point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DequantizeReport {
    /// Number of dequantised layers.
    pub layers: usize,
    /// Their type now.
    pub dtype: DType,
    /// Bytes of all tensors before.
    pub source_bytes: u64,
    /// Bytes of all tensors after.
    pub written_bytes: u64,
    /// Number of weight files.
    pub shards: usize,
}

/// Bytes of all these tensors.
pub(super) fn total_bytes(specs: &[TensorSpec]) -> u64 {
    specs.iter().filter_map(TensorSpec::byte_len).map(crate::convert::bytes).sum()
}
