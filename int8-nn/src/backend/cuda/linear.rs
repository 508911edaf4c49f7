//! Linear layers on the GPU, and their way there: rows are read into page-locked memory, copied, and quantised on the device
//! while the next ones are read.

use std::sync::{Arc, Mutex};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use int8_core::{Config, FloatSlice, FloatType, Granularity, OutlierRule};
use int8_cuda::model::{FloatWeight, Int8Linear, Int8LinearBuilder, RANGE_COLUMNS, Tensor, Upload};
use int8_cuda::{Buffer, Stream};
use ndarray::ArrayView2;
use rayon::prelude::*;

use super::lock;
use crate::Error;
use crate::backend::LinearStatistics;
use crate::kept_columns::{self, OutlierSquares};
use crate::precision::{OutlierWeights, Precision, Quantization, Site};
use crate::weights::{FloatMatrix, LinearSource, StoredWeight, widened};

/// A linear layer on the GPU: `y [M, N] = x [M, K] · Wᵀ + b`.
#[derive(Debug)]
pub struct CudaLinear {
    site: Site,
    name: String,
    weight: Weight,
    bias: Option<Buffer<f32>>,
    /// Its place among those whose weights stay in host memory.
    offloaded: Option<usize>,
    /// Until the exact columns have been chosen.
    uncalibrated: Mutex<Option<Uncalibrated>>,
}

/// An int8 weight whose exact columns are still to be chosen.
#[derive(Debug)]
struct Uncalibrated {
    source: LinearSource,
    outliers: OutlierSquares,
}

#[derive(Debug)]
pub(super) enum Weight {
    Float(Arc<FloatWeight>),
    Int8 { weight: Box<Int8Linear>, config: Config },
}

impl CudaLinear {
    pub(super) fn load(
        stream: &Stream,
        to: &mut Upload,
        site: Site,
        source: &LinearSource,
        precision: &Precision,
        compute: FloatType,
    ) -> Result<Self, Error> {
        let mut uncalibrated = None;
        let weight = match precision {
            // Tensor cores multiply two operands of one type.
            Precision::Float => Weight::Float(Arc::new(upload(stream, to, &source.float()?, compute)?)),
            Precision::Int8(Quantization { config, outlier_weights, .. }) => {
                let whole = quantize(stream, to, source, config)?;
                let weight = match source.shard() {
                    None => whole,
                    Some(features) => {
                        whole.features(stream, features.start, features.len(), RANGE_COLUMNS)?
                    }
                };
                let exact = *outlier_weights == OutlierWeights::Exact && config.rule != OutlierRule::None;
                if exact && source.shard().is_some() {
                    return Err(Error::Unsupported(format!(
                        "exact outlier weights of {}, which is shared out by input features",
                        source.name()
                    )));
                }
                // A checkpoint that is int8 itself has those columns that were stored beside the codes, or none.
                if exact && source.exact_columns(&[])?.is_some() {
                    match source.stored_outlier_columns()? {
                        Some(columns) => keep_exact(&weight, source, &columns, (stream, compute))?,
                        None => {
                            let outliers = OutlierSquares::new(source.inputs());
                            uncalibrated = Some(Uncalibrated { source: source.clone(), outliers });
                        }
                    }
                }
                Weight::Int8 { weight: Box::new(weight), config: *config }
            }
        };
        source.release();
        let bias = source.bias().map(|bias| Buffer::from_host(stream.device(), bias)).transpose()?;
        let uncalibrated = Mutex::new(uncalibrated);
        let name = source.name().to_owned();
        Ok(Self { site, name, weight, bias, offloaded: None, uncalibrated })
    }

    pub(super) fn from_weight(site: Site, name: &str, weight: Arc<FloatWeight>) -> Self {
        let (name, weight) = (name.to_owned(), Weight::Float(weight));
        Self { site, name, weight, bias: None, offloaded: None, uncalibrated: Mutex::default() }
    }

    /// Whether its exact columns are still to be chosen.
    pub(super) fn is_uncalibrated(&self) -> bool {
        lock(&self.uncalibrated).is_some()
    }

    /// Adds the outliers of its input `x f32 [rows, K]` to those that its exact columns are chosen by.
    pub(super) fn see(&self, x: ArrayView2<'_, f32>) {
        if let (Some(uncalibrated), Some(config)) = (&mut *lock(&self.uncalibrated), self.config()) {
            uncalibrated.outliers.add(x, &config.rule);
        }
    }

    /// Keeps the columns with the largest outliers so far exactly.
    pub(super) fn choose_exact(&self, stream: &Stream, compute: FloatType) -> Result<(), Error> {
        let Some(Uncalibrated { source, outliers }) = lock(&self.uncalibrated).take() else { return Ok(()) };
        let columns = outliers.largest(kept_columns::limit(source.inputs()));
        if let Weight::Int8 { weight, .. } = &self.weight {
            keep_exact(weight, &source, &columns, (stream, compute))?;
        }
        source.release();
        Ok(())
    }

    /// Where it stands in the model.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Name of the layer in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The codes, if the layer is int8.
    pub fn int8(&self) -> Option<&Int8Linear> {
        match &self.weight {
            Weight::Int8 { weight, .. } => Some(weight),
            Weight::Float(_) => None,
        }
    }

    /// How inputs are quantised, if the layer is int8.
    pub fn config(&self) -> Option<&Config> {
        match &self.weight {
            Weight::Int8 { config, .. } => Some(config),
            Weight::Float(_) => None,
        }
    }

    pub(super) fn set_offloaded(&mut self, place: usize) {
        self.offloaded = Some(place);
    }

    pub(super) fn offloaded(&self) -> Option<usize> {
        self.offloaded
    }

    pub(super) fn weight_mut(&mut self) -> &mut Weight {
        &mut self.weight
    }

    pub(super) fn weight(&self) -> &Weight {
        &self.weight
    }

    pub(super) fn bias(&self) -> Option<&Buffer<f32>> {
        self.bias.as_ref()
    }

    /// Outputs N and inputs K.
    pub(super) fn dim(&self) -> (usize, usize) {
        match &self.weight {
            Weight::Float(weight) => weight.dim(),
            Weight::Int8 { weight, .. } => weight.dim(),
        }
    }

    /// Bytes of weight and bias.
    pub(super) fn bytes(&self) -> usize {
        let weight = match &self.weight {
            Weight::Float(weight) => weight.bytes(),
            Weight::Int8 { weight, .. } => weight.bytes(),
        };
        weight + self.bias.as_ref().map_or(0, |bias| 4 * bias.len())
    }

    /// No outliers are counted on the device.
    pub(super) fn statistics(&self) -> LinearStatistics {
        let (_, inputs) = self.dim();
        LinearStatistics {
            name: self.name.clone(),
            inputs,
            column_calls: vec![0; inputs],
            exact_columns: self.int8().map_or(0, Int8Linear::exact_columns),
            ..LinearStatistics::default()
        }
    }
}

/// Reads these columns of the weight from the checkpoint and keeps them on the device, in the type that is computed in.
fn keep_exact(
    weight: &Int8Linear,
    source: &LinearSource,
    columns: &[usize],
    (stream, compute): (&Stream, FloatType),
) -> Result<(), Error> {
    if columns.is_empty() {
        return Ok(());
    }
    let Some(values) = source.exact_columns_f32(columns)? else { return Ok(()) };
    let values = Tensor::from_f32(stream.device(), compute, source.outputs(), &values)?;
    Ok(weight.keep_exact(stream.device(), columns, values)?)
}

/// A matrix on the device, as `element`.
pub(super) fn upload(
    stream: &Stream,
    to: &mut Upload,
    matrix: &FloatMatrix<'_>,
    element: FloatType,
) -> Result<FloatWeight, Error> {
    let (n, k) = matrix.dim();
    let mut weight = FloatWeight::zeros(stream.device(), element, n, k)?;
    let row_bytes = k * element.bytes();
    let each = rows_at_once(to, row_bytes);
    for first in (0..n).step_by(each) {
        let rows = each.min(n - first);
        to.stage(
            stream,
            rows * row_bytes,
            |bytes| {
                fill(matrix, first, element, bytes);
                Ok::<_, Error>(())
            },
            |staged| Ok(weight.copy_rows(stream, staged, first, rows)?),
        )?;
    }
    Ok(weight)
}

/// Quantises the parts of a layer, each by itself: where a tensor has one scale, each of them has one.
fn quantize(
    stream: &Stream,
    to: &mut Upload,
    source: &LinearSource,
    config: &Config,
) -> Result<Int8Linear, Error> {
    let (n, k) = (source.outputs(), source.inputs());
    let mut builder = Int8LinearBuilder::new(stream.device(), n, k, config.weight_encoding)?;
    for part in 0..source.parts() {
        match source.part(part)? {
            StoredWeight::Int8(rows) => {
                let codes: Vec<i8> =
                    (0..rows.dim().0).flat_map(|row| rows.row(row).iter().copied()).collect();
                builder.append_codes(stream, &codes, &rows.scales().to_vec())?;
            }
            part @ StoredWeight::Float(_) => {
                let matrix = FloatMatrix::stack(vec![part], k);
                let (rows, _) = matrix.dim();
                let row_bytes = k * matrix.float_type().bytes();
                let each = match config.weight_granularity {
                    Granularity::Tensor => rows,
                    _ => rows_at_once(to, row_bytes),
                };
                for first in (0..rows).step_by(each.max(1)) {
                    let rows = each.min(rows - first);
                    to.stage(
                        stream,
                        rows * row_bytes,
                        |bytes| {
                            fill(&matrix, first, matrix.float_type(), bytes);
                            Ok::<_, Error>(())
                        },
                        |staged| {
                            let granularity = config.weight_granularity;
                            Ok(builder.quantize(stream, staged, matrix.float_type(), rows, granularity)?)
                        },
                    )?;
                }
            }
        }
    }
    Ok(builder.finish()?)
}

fn rows_at_once(to: &Upload, row_bytes: usize) -> usize {
    (to.capacity() / row_bytes.max(1)).max(1)
}

/// Bytes that one task reads: outweighs handing it to another thread.
const TASK_BYTES: usize = 1 << 20;

/// Reads rows from `first` on into `bytes`, a whole number of rows, as `element`.
fn fill(matrix: &FloatMatrix<'_>, first: usize, element: FloatType, bytes: &mut [u8]) {
    let row_bytes = (matrix.dim().1 * element.bytes()).max(1);
    let rows = (TASK_BYTES / row_bytes).max(1);
    bytes.par_chunks_mut(rows * row_bytes).enumerate().for_each(|(index, block)| {
        let first = first + index * rows;
        let count = block.len() / row_bytes;
        let mut targets = block.chunks_exact_mut(row_bytes);
        let mut wide = Vec::new();
        matrix.read(first..first + count, &mut |row| {
            if let Some(target) = targets.next() {
                put(row, element, target, &mut wide);
            }
        });
    });
}

/// A row as `element`, in `target`; `wide` is used where it has another type.
fn put(row: FloatSlice<'_>, element: FloatType, target: &mut [u8], wide: &mut Vec<f32>) {
    match (row, element) {
        (FloatSlice::F32(row), FloatType::F32) => target.copy_from_slice(bytemuck::cast_slice(row)),
        (FloatSlice::F16(row), FloatType::F16) => target.copy_from_slice(bytemuck::cast_slice(row)),
        (FloatSlice::Bf16(row), FloatType::Bf16) => target.copy_from_slice(bytemuck::cast_slice(row)),
        (row, FloatType::F32) => target.copy_from_slice(bytemuck::cast_slice(widened(row, wide))),
        (row, FloatType::F16) => {
            let mut rounded = vec![f16::ZERO; row.len()];
            rounded.convert_from_f32_slice(widened(row, wide));
            target.copy_from_slice(bytemuck::cast_slice(&rounded));
        }
        (row, FloatType::Bf16) => {
            let mut rounded = vec![bf16::ZERO; row.len()];
            rounded.convert_from_f32_slice(widened(row, wide));
            target.copy_from_slice(bytemuck::cast_slice(&rounded));
        }
    }
}
