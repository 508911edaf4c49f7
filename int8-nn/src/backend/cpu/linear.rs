//! A linear layer: int8 with its scales, bias and exact outlier columns, or in floating point.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::sync::{Arc, Mutex, PoisonError};

use int8_core::{Granularity, OutlierRule, Scheme};
use int8_cpu::{ExactColumn, ExactColumns, Kernel, PackedWeight, Store};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, ArrayViewMut2, Axis, concatenate};

use super::float::SharedMatrix;
use crate::Error;
use crate::backend::{LinearStatistics, OutlierWeights, Precision, Quantization};
use crate::convert;
use crate::weights::{FloatMatrix, LinearSource, StoredWeight};

/// A linear layer on the CPU.
#[derive(Debug)]
pub struct CpuLinear {
    name: String,
    bias: Option<Vec<f32>>,
    weight: Weight,
    statistics: Mutex<Statistics>,
}

#[derive(Debug)]
enum Weight {
    Float(SharedMatrix),
    Int8(Box<Int8Weight>),
}

#[derive(Debug)]
struct Int8Weight {
    packed: PackedWeight,
    quantization: Quantization,
    /// The weight's own columns for its outliers; without them the codes are dequantised.
    exact: Option<LazyColumns>,
}

#[derive(Debug, Default)]
struct Statistics {
    calls: u64,
    outlier_columns: u64,
    outlier_values: u64,
    values: u64,
}

impl CpuLinear {
    pub(super) fn load(kernel: Kernel, source: &LinearSource, precision: &Precision) -> Result<Self, Error> {
        let weight = match precision {
            Precision::Float => Weight::Float(SharedMatrix::new(source.float()?)),
            Precision::Int8(quantization) => Weight::int8(kernel, source, *quantization)?,
        };
        let bias = source.bias().map(<[f32]>::to_vec);
        Ok(Self { name: source.name().to_owned(), bias, weight, statistics: Mutex::default() })
    }

    pub(super) fn from_matrix(name: &str, matrix: SharedMatrix) -> Self {
        Self {
            name: name.to_owned(),
            bias: None,
            weight: Weight::Float(matrix),
            statistics: Mutex::default(),
        }
    }

    /// `out (+)= x · Wᵀ + b`.
    pub(super) fn apply(
        &self,
        x: ArrayView2<'_, f32>,
        mut out: ArrayViewMut2<'_, f32>,
        add: bool,
    ) -> Result<(), Error> {
        let bias = self.bias.as_deref();
        let Int8Weight { packed, quantization, exact } = match &self.weight {
            Weight::Float(matrix) => {
                matrix.multiply(x, bias, out, add);
                return Ok(());
            }
            Weight::Int8(weight) => &**weight,
        };
        let outlier_weights = match exact {
            Some(columns) => int8_cpu::OutlierWeights::Exact(columns),
            None => int8_cpu::OutlierWeights::Dequantized,
        };
        let store = if add { Store::Accumulate } else { Store::Overwrite };
        let met =
            int8_cpu::linear(x, packed, outlier_weights, bias, &quantization.config, store, out.view_mut())?;
        let mut statistics = self.statistics.lock().unwrap_or_else(PoisonError::into_inner);
        statistics.calls += 1;
        statistics.outlier_columns += convert::bytes(met.outlier_columns);
        statistics.outlier_values += convert::bytes(met.outlier_values);
        statistics.values += convert::bytes(x.len());
        Ok(())
    }

    pub(super) fn statistics(&self) -> LinearStatistics {
        let statistics = self.statistics.lock().unwrap_or_else(PoisonError::into_inner);
        let (inputs, exact) = match &self.weight {
            Weight::Float(matrix) => (matrix.dim().1, None),
            Weight::Int8(weight) => (weight.packed.dim().1, weight.exact.as_ref()),
        };
        LinearStatistics {
            name: self.name.clone(),
            inputs,
            calls: statistics.calls,
            outlier_columns: statistics.outlier_columns,
            outlier_values: statistics.outlier_values,
            values: statistics.values,
            column_calls: exact.map_or_else(|| vec![0; inputs], |exact| exact.calls(inputs)),
            exact_columns: exact.map_or(0, LazyColumns::len),
        }
    }

    pub(super) fn reset_statistics(&self) {
        *self.statistics.lock().unwrap_or_else(PoisonError::into_inner) = Statistics::default();
        if let Weight::Int8(weight) = &self.weight
            && let Some(exact) = &weight.exact
        {
            exact.reset_calls();
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let bias = self.bias.as_ref().map_or(0, |bias| size_of_val(bias.as_slice()));
        bias + match &self.weight {
            Weight::Float(matrix) => matrix.bytes(),
            Weight::Int8(weight) => {
                weight.packed.bytes() + weight.exact.as_ref().map_or(0, LazyColumns::bytes)
            }
        }
    }
}

impl Weight {
    fn int8(kernel: Kernel, source: &LinearSource, quantization: Quantization) -> Result<Self, Error> {
        let mut parts = (0..source.parts()).map(|part| source.part(part)).collect::<Result<Vec<_>, _>>()?;
        let packed = match (parts.len(), parts.pop()) {
            (1, Some(StoredWeight::Float(matrix))) => quantize(kernel, &matrix, &quantization)?,
            (_, Some(last)) => {
                // Each part is quantised by itself: a scheme with one constant a tensor has one for each of them.
                parts.push(last);
                let parts = parts
                    .into_iter()
                    .map(|part| match part {
                        StoredWeight::Int8 { codes, scales } => {
                            let zero_points = Array1::zeros(scales.len());
                            Ok((codes, Array1::from_vec(scales), zero_points))
                        }
                        StoredWeight::Float(matrix) => {
                            let part = quantize(kernel, &matrix, &quantization)?;
                            Ok((part.codes(), part.scales().to_owned(), part.zero_points().to_owned()))
                        }
                    })
                    .collect::<Result<Vec<_>, Error>>()?;
                stack(kernel, &parts)?
            }
            (_, None) => return Err(Error::Input(format!("{}: a layer without weights", source.name()))),
        };
        // A checkpoint that is int8 itself has no other columns to fetch.
        let is_float = source.exact_columns(&[])?.is_some();
        let config = &quantization.config;
        let columns = |row_scales| LazyColumns { source: source.clone(), row_scales, kept: Mutex::default() };
        let exact = match quantization.outlier_weights {
            _ if !is_float || config.rule == OutlierRule::None => None,
            OutlierWeights::Exact => Some(columns(None)),
            // The codes of the product are row-wise: nothing else is needed.
            OutlierWeights::Dequantized if config.weight_granularity == Granularity::Row => None,
            OutlierWeights::Dequantized => Some(columns(Some(row_scales(kernel, source)?))),
        };
        Ok(Self::Int8(Box::new(Int8Weight { packed, quantization, exact })))
    }
}

fn quantize(
    kernel: Kernel,
    matrix: &FloatMatrix,
    quantization: &Quantization,
) -> Result<PackedWeight, Error> {
    let (encoding, granularity) =
        (quantization.config.weight_encoding, quantization.config.weight_granularity);
    Ok(match matrix {
        FloatMatrix::F32(matrix) => PackedWeight::quantize(kernel, matrix.view(), encoding, granularity)?,
        FloatMatrix::F16(matrix) => PackedWeight::quantize(kernel, matrix.view(), encoding, granularity)?,
        FloatMatrix::Bf16(matrix) => PackedWeight::quantize(kernel, matrix.view(), encoding, granularity)?,
    })
}

/// The largest magnitude of each output row.
fn row_scales(kernel: Kernel, source: &LinearSource) -> Result<Vec<f32>, Error> {
    let vector_wise = Scheme::AbsmaxVectorWise.config();
    let quantization = Quantization { config: vector_wise, outlier_weights: OutlierWeights::Dequantized };
    Ok(quantize(kernel, &source.float()?, &quantization)?.scales().to_vec())
}

fn stack(kernel: Kernel, parts: &[(Array2<i8>, Array1<f32>, Array1<i32>)]) -> Result<PackedWeight, Error> {
    const WIDTHS: &str = "the widths were checked when the layer was found";
    let codes: Vec<_> = parts.iter().map(|(codes, _, _)| codes.view()).collect();
    let scales: Vec<_> = parts.iter().map(|(_, scales, _)| scales.view()).collect();
    let zero_points: Vec<_> = parts.iter().map(|(_, _, zero_points)| zero_points.view()).collect();
    Ok(PackedWeight::from_codes(
        kernel,
        concatenate(Axis(0), &codes).expect(WIDTHS).view(),
        concatenate(Axis(0), &scales).expect(WIDTHS).view(),
        Some(concatenate(Axis(0), &zero_points).expect(WIDTHS).view()),
    )?)
}

/// Exact columns of a weight, fetched from the checkpoint when they are first needed. In the models of the paper these
/// are a handful; a model with outliers everywhere ends up with its 16-bit weight beside the int8 one.
#[derive(Debug)]
struct LazyColumns {
    source: LinearSource,
    /// Round the columns to int8 with these scales, one for each output row.
    row_scales: Option<Vec<f32>>,
    kept: Mutex<BTreeMap<usize, Kept>>,
}

#[derive(Debug)]
struct Kept {
    column: ExactColumn,
    calls: u64,
}

impl LazyColumns {
    fn len(&self) -> usize {
        self.lock().len()
    }

    fn bytes(&self) -> usize {
        let bytes = |kept: &Kept| match &kept.column {
            ExactColumn::F32(values) => size_of_val(&**values),
            ExactColumn::F16(values) => size_of_val(&**values),
            ExactColumn::Bf16(values) => size_of_val(&**values),
        };
        self.lock().values().map(bytes).sum()
    }

    fn calls(&self, inputs: usize) -> Vec<u64> {
        let mut calls = vec![0; inputs];
        for (column, kept) in &*self.lock() {
            calls[*column] = kept.calls;
        }
        calls
    }

    fn reset_calls(&self) {
        self.lock().values_mut().for_each(|kept| kept.calls = 0);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fetch(&self, columns: &[usize]) -> Result<Vec<ExactColumn>, Error> {
        fn rows<T: Copy>(matrix: &Array2<T>, wrap: impl Fn(Arc<[T]>) -> ExactColumn) -> Vec<ExactColumn> {
            matrix.rows().into_iter().map(|row| wrap(row.iter().copied().collect())).collect()
        }
        let exact = self.source.exact_columns(columns)?;
        if let (Some(scales), Some(exact)) = (&self.row_scales, &exact) {
            let mut columns = exact.to_f32();
            for mut column in columns.rows_mut() {
                column.zip_mut_with(&ArrayView1::from(scales), |value, scale| {
                    *value = through_int8(*value, *scale)
                });
            }
            return Ok(rows(&columns, ExactColumn::F32));
        }
        Ok(match exact {
            Some(FloatMatrix::F32(matrix)) => rows(&matrix, ExactColumn::F32),
            Some(FloatMatrix::F16(matrix)) => rows(&matrix, ExactColumn::F16),
            Some(FloatMatrix::Bf16(matrix)) => rows(&matrix, ExactColumn::Bf16),
            None => Vec::new(),
        })
    }
}

/// `round(w·127/s)·s/127`: what an absmax code of `w` stands for.
fn through_int8(value: f32, scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { (value * (127.0 / scale)).round_ties_even() * (scale / 127.0) }
}

impl ExactColumns for LazyColumns {
    fn columns(&self, columns: &[usize]) -> Result<Vec<ExactColumn>, Box<dyn StdError + Send + Sync>> {
        let mut kept = self.lock();
        let missing: Vec<usize> =
            columns.iter().copied().filter(|column| !kept.contains_key(column)).collect();
        if !missing.is_empty() {
            for (index, column) in missing.iter().zip(self.fetch(&missing)?) {
                kept.insert(*index, Kept { column, calls: 0 });
            }
        }
        let mut found = Vec::with_capacity(columns.len());
        for column in columns {
            // A fetch that returns too few leaves a gap, which the kernel reports by its count.
            if let Some(kept) = kept.get_mut(column) {
                kept.calls += 1;
                found.push(kept.column.clone());
            }
        }
        Ok(found)
    }
}
