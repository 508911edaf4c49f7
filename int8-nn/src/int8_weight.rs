//! An int8 weight with what its products need beside it: settings, and exact columns for the outliers.

use std::error::Error as StdError;
use std::ops::Range;

use int8_core::{Config, Element, Granularity, OutlierRule, QuantizedMatrix};
use int8_cpu::{ExactColumn, ExactColumns, Kernel, LinearStats, PackedWeight, PackedWeightBuilder, Store};
use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut2, s};
use rayon::prelude::*;

use crate::Error;
use crate::exact_columns::{ExactColumnCache, Origin};
use crate::precision::{OutlierWeights, Quantization};
use crate::weights::{FloatMatrix, LinearSource, StoredWeight, widened};

/// Input features behind those of a [shard](LinearSource::shard), with weights of 0: through them a row of the input is given the
/// least and the greatest value of all its shards, on which its scale depends.
pub(crate) const RANGE_FEATURES: usize = 2;

/// `W [N, K]` in int8.
#[derive(Debug)]
pub(crate) struct Int8Weight {
    pub(crate) packed: PackedWeight,
    pub(crate) config: Config,
    /// Columns for the outliers; without them the codes are dequantised where they are needed.
    pub(crate) exact: Option<ExactColumnCache>,
}

impl Int8Weight {
    /// Reads and quantises the weight of a layer.
    ///
    /// # Errors
    /// When the checkpoint's tensors are not what they should be, or K is too large for an i32 accumulator.
    pub(crate) fn load(
        kernel: Kernel,
        source: &LinearSource,
        quantization: &Quantization,
    ) -> Result<Self, Error> {
        let Quantization { config, outlier_weights, .. } = *quantization;
        let packed = pack(kernel, source, &config)?;
        // A checkpoint that is int8 itself has no other columns to be read.
        let is_float = source.exact_columns(&[])?.is_some();
        let cache =
            |row_scales| ExactColumnCache::new(Origin::Checkpoint { source: source.clone(), row_scales });
        let exact = match outlier_weights {
            _ if !is_float || config.rule == OutlierRule::None => None,
            OutlierWeights::Exact => Some(cache(None)),
            // The codes of the product are at least row-wise: nothing else is needed.
            OutlierWeights::Dequantized if config.weight_granularity != Granularity::Tensor => None,
            OutlierWeights::Dequantized => Some(cache(Some(row_scales(&source.float()?)))),
        };
        source.release();
        Ok(Self { packed, config, exact })
    }

    /// What the outliers of an input are multiplied with.
    pub(crate) fn outlier_weights(&self) -> int8_cpu::OutlierWeights<'_> {
        match self.exact {
            Some(_) => int8_cpu::OutlierWeights::Exact(self),
            None => int8_cpu::OutlierWeights::Dequantized,
        }
    }

    /// `out [M, N] (+)= x [M, K] · Wᵀ + bias`.
    ///
    /// # Errors
    /// When `x` has not K columns, `out` is not `[M, N]`, `bias` has not N elements, or rows are not contiguous.
    pub(crate) fn multiply<X: Element, Y: Element>(
        &self,
        x: ArrayView2<'_, X>,
        bias: Option<&[f32]>,
        store: Store,
        out: ArrayViewMut2<'_, Y>,
    ) -> Result<LinearStats, Error> {
        let Self { packed, config, .. } = self;
        Ok(int8_cpu::linear(x, packed, self.outlier_weights(), bias, config, store, out)?)
    }

    /// Bytes of codes, quantization parameters and exact columns.
    pub(crate) fn bytes(&self) -> usize {
        self.packed.bytes() + self.exact.as_ref().map_or(0, ExactColumnCache::bytes)
    }
}

impl ExactColumns for Int8Weight {
    fn columns(&self, columns: &[usize]) -> Result<Vec<ExactColumn>, Box<dyn StdError + Send + Sync>> {
        let exact = self.exact.as_ref().map(|exact| exact.columns(&self.packed, columns));
        Ok(exact.transpose()?.unwrap_or_default())
    }
}

/// Quantises the parts of a layer, each by itself: where a tensor has one scale, each of them has one.
fn pack(kernel: Kernel, source: &LinearSource, config: &Config) -> Result<PackedWeight, Error> {
    if let Some(features) = source.shard() {
        return pack_shard(kernel, source, features, config);
    }
    let parts = (0..source.parts()).map(|part| source.part(part)).collect::<Result<Vec<_>, _>>()?;
    let granularity = match config.weight_granularity {
        // What is int8 already has one scale a row, and the parts become one weight.
        Granularity::Group if parts.iter().any(|part| matches!(part, StoredWeight::Int8(_))) => {
            Granularity::Row
        }
        granularity => granularity,
    };
    let dim = (source.outputs(), source.inputs());
    let mut builder = PackedWeightBuilder::new(kernel, dim, config.weight_encoding, granularity)?;
    for part in &parts {
        match part {
            StoredWeight::Float(rows) => builder.append(rows)?,
            StoredWeight::Int8(rows) => {
                builder.append_codes(rows.dim().0, &|row| rows.row(row), rows.scales(), None)?;
            }
        }
    }
    Ok(builder.finish()?)
}

/// Some features of the quantised weight, and behind them [`RANGE_FEATURES`].
fn pack_shard(
    kernel: Kernel,
    source: &LinearSource,
    features: &Range<usize>,
    config: &Config,
) -> Result<PackedWeight, Error> {
    /// Rows that are quantised at a time.
    const ROWS: usize = 1024;
    if config.weight_granularity != Granularity::Row {
        return Err(Error::Unsupported("a shard of a weight without one scale a row".to_owned()));
    }
    let inner = features.len() + RANGE_FEATURES;
    let mut builder = PackedWeightBuilder::new(
        kernel,
        (source.outputs(), inner),
        config.weight_encoding,
        Granularity::Row,
    )?;
    for part in 0..source.parts() {
        match source.part(part)? {
            StoredWeight::Float(rows) => {
                let all = FloatMatrix::stack(vec![StoredWeight::Float(rows)], source.inputs());
                for first in (0..all.dim().0).step_by(ROWS) {
                    let count = ROWS.min(all.dim().0 - first);
                    let mut values = Array2::zeros((count, source.inputs()));
                    let mut targets = values.rows_mut().into_iter();
                    let mut wide = Vec::new();
                    all.read(first..first + count, &mut |row| {
                        if let Some(mut target) = targets.next() {
                            target.assign(&ArrayView1::from(widened(row, &mut wide)));
                        }
                    });
                    let quantized =
                        QuantizedMatrix::quantize(values.view(), config.weight_encoding, Granularity::Row);
                    let zeros = quantized.zero_points();
                    let mut codes = Array2::from_shape_fn((count, inner), |(row, _)| {
                        // What stands for 0; zero points lie in the codes' range.
                        i8::try_from(zeros[row]).unwrap_or_default()
                    });
                    let kept = quantized.codes();
                    codes.slice_mut(s![.., ..features.len()]).assign(&kept.slice(s![.., features.clone()]));
                    append(&mut builder, &codes, quantized.scales(), Some(zeros))?;
                }
            }
            StoredWeight::Int8(rows) => {
                let mut codes = Array2::zeros((rows.dim().0, inner));
                for (index, mut target) in codes.rows_mut().into_iter().enumerate() {
                    let kept = ArrayView1::from(&rows.row(index)[features.clone()]);
                    target.slice_mut(s![..features.len()]).assign(&kept);
                }
                append(&mut builder, &codes, rows.scales(), None)?;
            }
        }
    }
    Ok(builder.finish()?)
}

fn append(
    builder: &mut PackedWeightBuilder,
    codes: &Array2<i8>,
    scales: ArrayView1<'_, f32>,
    zero_points: Option<ArrayView1<'_, i32>>,
) -> Result<(), Error> {
    let inner = codes.ncols();
    let all = codes.as_slice().expect("standard layout");
    let row = |index: usize| &all[index * inner..(index + 1) * inner];
    Ok(builder.append_codes(codes.nrows(), &row, scales, zero_points)?)
}

/// The largest magnitude of each row; NaN for one that is not finite.
pub(crate) fn row_scales(matrix: &FloatMatrix<'_>) -> Vec<f32> {
    /// Rows of a task.
    const ROWS: usize = 32;
    let mut scales = vec![0.0; matrix.dim().0];
    scales.par_chunks_mut(ROWS).enumerate().for_each(|(index, scales)| {
        let (mut wide, first) = (Vec::new(), index * ROWS);
        let mut targets = scales.iter_mut();
        matrix.read(first..first + targets.len(), &mut |row| {
            // Magnitudes order as their bits do, and a NaN comes last.
            let bits = widened(row, &mut wide).iter().map(|value| value.abs().to_bits()).max();
            let largest = f32::from_bits(bits.unwrap_or(0));
            if let Some(scale) = targets.next() {
                *scale = if largest.is_finite() { largest } else { f32::NAN };
            }
        });
    });
    scales
}
