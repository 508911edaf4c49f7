//! The linear layers of a checkpoint: which stored weights make one up, and access to its rows and columns where they lie.

mod matrix;
mod part;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ops::Range;

use int8_core::{Element, FloatSlice, FloatType};
use int8_cpu::ExactColumn;

use crate::Error;
use crate::checkpoint::{Checkpoint, DType, ReadAs};
pub use matrix::FloatMatrix;
pub(crate) use matrix::{read_matrix, widened};
pub use part::{CodeRows, StoredWeight};
pub(crate) use part::{Part, Rows};
pub use table::RowTable;

/// A linear layer in a checkpoint: `y = x·Wᵀ + b`, `W [outputs, inputs]` stacked from its parts.
#[derive(Debug, Clone)]
pub struct LinearSource {
    checkpoint: Checkpoint,
    name: String,
    parts: Vec<Part>,
    part_outputs: Vec<usize>,
    /// Outputs of the layers that are stacked, whether or not they are stored as one part.
    sections: Vec<usize>,
    inputs: usize,
    /// The input features that are used.
    shard: Option<Range<usize>>,
    bias: Option<Vec<f32>>,
}

impl LinearSource {
    /// Finds the parts below `root` and checks that together they are `[outputs, inputs]`.
    pub(crate) fn find(
        checkpoint: &Checkpoint,
        root: &str,
        parts: Vec<Part>,
        outputs: &[usize],
        inputs: usize,
    ) -> Result<Self, Error> {
        let parts: Vec<Part> = parts.into_iter().map(|part| part.below(root)).collect();
        // A fused projection is one part that holds all outputs.
        let part_outputs =
            if parts.len() == outputs.len() { outputs.to_vec() } else { vec![outputs.iter().sum()] };
        let (mut bias, mut found, mut missing) = (Vec::new(), false, false);
        for (part, outputs) in parts.iter().zip(&part_outputs) {
            let stored = part.stored_rows(*outputs);
            part.expect_shape(checkpoint, stored, inputs)?;
            let stored_bias = part.bias.as_ref().and_then(|bias| checkpoint.get(bias));
            missing |= part.bias.is_some() && stored_bias.is_none();
            if let Some(tensor) = stored_bias {
                let tensor = match part.slab {
                    Some(index) => tensor.slab(index)?,
                    // One row: biases of logits are stored so.
                    None if tensor.shape() == [1, stored] => tensor.slab(0)?,
                    None => tensor,
                };
                bias.extend(part.select(tensor.expect_shape(&[stored])?.to_f32()?));
                found = true;
            } else {
                // Of a part that has none beside others that have (Whisper's keys).
                bias.extend(std::iter::repeat_n(0.0, *outputs));
            }
        }
        if found && missing {
            return Err(Error::Input(format!(
                "{}: some of the {} weights that form this layer have a bias and some have none",
                parts[0].name,
                parts.len()
            )));
        }
        let bias = found.then_some(bias);
        let name = parts.iter().map(|part| part.name.as_str()).collect::<Vec<_>>().join("+");
        let (checkpoint, sections) = (checkpoint.clone(), outputs.to_vec());
        Ok(Self { checkpoint, name, parts, part_outputs, sections, inputs, shard: None, bias })
    }

    /// The same layer with these of its outputs alone: ranges of each of the [`sections`](Self::sections), counted in it.
    ///
    /// # Panics
    /// If there is not one range for each section, inside it.
    #[must_use]
    pub(crate) fn with_outputs(&self, ranges: &[Range<usize>]) -> Self {
        assert_eq!(ranges.len(), self.sections.len(), "{}: ranges of the sections", self.name);
        let firsts = self.sections.iter().scan(0, |end, outputs| {
            let first = *end;
            *end += outputs;
            Some((first, *outputs))
        });
        let kept: Vec<Range<usize>> = firsts
            .zip(ranges)
            .map(|((first, outputs), range)| {
                assert!(range.start <= range.end && range.end <= outputs, "{}: {range:?}", self.name);
                first + range.start..first + range.end
            })
            .collect();
        let (mut parts, mut part_outputs, mut first) = (Vec::new(), Vec::new(), 0);
        for (part, outputs) in self.parts.iter().zip(&self.part_outputs) {
            let inside = |range: &Range<usize>| {
                range.start.clamp(first, first + outputs) - first
                    ..range.end.clamp(first, first + outputs) - first
            };
            let rows: Vec<usize> = kept.iter().flat_map(inside).collect();
            first += outputs;
            if !rows.is_empty() {
                part_outputs.push(rows.len());
                parts.push(part.clone().of_rows(&rows, *outputs));
            }
        }
        let bias = self.bias.as_ref();
        let bias = bias.map(|bias| kept.iter().flat_map(|range| &bias[range.clone()]).copied().collect());
        let sections = ranges.iter().map(ExactSizeIterator::len).collect();
        Self { parts, part_outputs, sections, bias, ..self.clone() }
    }

    /// The same layer with these of its input features alone, and with the bias or without: a summand of its output.
    ///
    /// # Panics
    /// If the layer has no such features.
    #[must_use]
    pub(crate) fn with_inputs(&self, features: Range<usize>, biased: bool) -> Self {
        assert!(features.start < features.end && features.end <= self.inputs, "{}: {features:?}", self.name);
        let bias = self.bias.clone().filter(|_| biased);
        Self { shard: Some(features), bias, ..self.clone() }
    }

    /// Outputs of the layers that are stacked: of queries, keys and values, for example.
    pub(crate) fn sections(&self) -> &[usize] {
        &self.sections
    }

    /// The input features that are used, where it is not all of them. Codes and scales are those of whole rows.
    pub fn shard(&self) -> Option<&Range<usize>> {
        self.shard.as_ref()
    }

    /// The layer's name in the checkpoint; stacked parts are joined by `+`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Outputs N.
    pub fn outputs(&self) -> usize {
        self.part_outputs.iter().sum()
    }

    /// Input features K of the stored weight.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bias `[N]`.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// Number of parts; each is a weight of its own to a scheme with one scale a tensor.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Whether the checkpoint holds any part of it as int8.
    ///
    /// # Errors
    /// When a tensor is missing.
    pub(crate) fn is_int8(&self) -> Result<bool, Error> {
        for part in &self.parts {
            if part.dtype(&self.checkpoint)? == DType::I8 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The rows of part `index`, `[out, in]` in the order the layer stacks them.
    ///
    /// # Errors
    /// When the tensor is no floating-point matrix and no bitsandbytes int8 weight.
    ///
    /// # Panics
    /// If there is no such part.
    pub fn part(&self, index: usize) -> Result<StoredWeight<'_>, Error> {
        self.parts[index].open(&self.checkpoint)
    }

    /// The whole weight, or its [`shard`](Self::shard), in floating point, in the stored type when all parts share one. int8 parts
    /// are dequantised to f32.
    ///
    /// # Errors
    /// As [`part`](Self::part).
    pub fn float(&self) -> Result<FloatMatrix<'_>, Error> {
        let parts: Vec<_> = (0..self.parts()).map(|index| self.part(index)).collect::<Result<_, _>>()?;
        let whole = FloatMatrix::stack(parts, self.inputs);
        Ok(match &self.shard {
            None => whole,
            Some(features) => whole.narrowed(features.clone()),
        })
    }

    /// Lets the system take back the memory that holds the mapped weight: it has been read, and will be again in single columns
    /// at most.
    pub fn release(&self) {
        self.parts.iter().for_each(|part| part.release(&self.checkpoint));
    }

    /// The columns `columns` of the weight exactly as stored, N elements each. `None` when the checkpoint holds int8 codes and
    /// nothing else. Where it holds exact columns beside them, these, in f32, and for the others what the codes stand for.
    ///
    /// # Errors
    /// When a tensor is missing or of another kind, and for a column out of range.
    pub fn exact_columns(&self, columns: &[usize]) -> Result<Option<Vec<ExactColumn>>, Error> {
        if self.is_int8()? && !self.checkpoint.has_outlier_columns() {
            return Ok(None);
        }
        let first = self.shard.as_ref().map_or(0, |features| features.start);
        let columns: Vec<usize> = columns.iter().map(|column| first + column).collect();
        let columns = &columns[..];
        let mut types = Vec::new();
        for part in &self.parts {
            types.push(match part.dtype(&self.checkpoint)? {
                DType::F16 => FloatType::F16,
                DType::BF16 => FloatType::Bf16,
                _ => FloatType::F32,
            });
        }
        let shared = types.first().filter(|first| types.iter().all(|other| other == *first));
        Ok(Some(match shared.unwrap_or(&FloatType::F32) {
            FloatType::F32 => self.columns_as(columns, |values| ExactColumn::F32(values.into()))?,
            FloatType::F16 => self.columns_as(columns, |values| ExactColumn::F16(values.into()))?,
            FloatType::Bf16 => self.columns_as(columns, |values| ExactColumn::Bf16(values.into()))?,
        }))
    }

    /// The same as f32 `[columns, N]` row-major: one column of the weight after the other.
    ///
    /// # Errors
    /// As [`exact_columns`](Self::exact_columns).
    pub fn exact_columns_f32(&self, columns: &[usize]) -> Result<Option<Vec<f32>>, Error> {
        let Some(exact) = self.exact_columns(columns)? else { return Ok(None) };
        let (mut all, mut wide) = (Vec::with_capacity(columns.len() * self.outputs()), Vec::new());
        for column in &exact {
            all.extend_from_slice(match column {
                ExactColumn::F32(values) => values,
                ExactColumn::F16(values) => widened(FloatSlice::F16(values), &mut wide),
                ExactColumn::Bf16(values) => widened(FloatSlice::Bf16(values), &mut wide),
            });
        }
        Ok(Some(all))
    }

    /// The columns that the checkpoint holds exactly beside the codes of an int8 layer, ascending. `None` where a part of the
    /// layer is in floating point: each of its columns is exact.
    ///
    /// # Errors
    /// When a tensor is missing or what is stored does not fit the weight.
    pub fn stored_outlier_columns(&self) -> Result<Option<Vec<usize>>, Error> {
        let mut all = BTreeSet::new();
        for part in &self.parts {
            if part.dtype(&self.checkpoint)? != DType::I8 {
                return Ok(None);
            }
            let tensor = part.tensor(&self.checkpoint)?;
            let stored = self.checkpoint.outlier_columns(&part.name, tensor.matrix_shape()?)?;
            all.extend(stored.into_iter().flat_map(|stored| stored.columns));
        }
        let features = self.shard.clone().unwrap_or(0..self.inputs);
        let inside = all.range(features.clone());
        Ok(Some(inside.map(|column| column - features.start).collect()))
    }

    fn columns_as<T: Element + ReadAs>(
        &self,
        columns: &[usize],
        column: impl Fn(Vec<T>) -> ExactColumn,
    ) -> Result<Vec<ExactColumn>, Error> {
        let mut stacked: Vec<Vec<T>> = columns.iter().map(|_| Vec::with_capacity(self.outputs())).collect();
        for part in &self.parts {
            part.columns(&self.checkpoint, columns, &mut stacked)?;
        }
        Ok(stacked.into_iter().map(column).collect())
    }
}
