//! An int8 weight with what its products need beside it: settings, and exact columns for the outliers.

use std::error::Error as StdError;

use int8_core::{Config, Element, Granularity, OutlierRule};
use int8_cpu::{ExactColumn, ExactColumns, Kernel, LinearStats, PackedWeight, PackedWeightBuilder, Store};
use ndarray::{ArrayView2, ArrayViewMut2};
use rayon::prelude::*;

use crate::Error;
use crate::exact_columns::{ExactColumnCache, Origin};
use crate::precision::{OutlierWeights, Quantization};
use crate::weights::{FloatMatrix, LinearSource, StoredWeight, widened};

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
