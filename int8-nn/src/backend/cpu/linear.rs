//! A linear layer of a model on the CPU: int8 or in floating point, and what it has counted.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use int8_core::Config;
use int8_cpu::{Kernel, LinearStats, PackedWeight, QuantizedActivations, Store};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};

use super::float::FloatWeight;
use crate::backend::LinearStatistics;
use crate::exact_columns::ExactColumnCache;
use crate::int8_weight::Int8Weight;
use crate::precision::{Precision, Site};
use crate::weights::{LinearSource, RowTable};
use crate::{Error, convert};

/// A linear layer on the CPU: `y [M, N] = x [M, K] · Wᵀ + b`.
#[derive(Debug)]
pub struct CpuLinear {
    site: Site,
    name: String,
    kernel: Kernel,
    weight: Weight,
    bias: Option<Vec<f32>>,
    statistics: Mutex<Statistics>,
}

#[derive(Debug)]
enum Weight {
    Float(FloatWeight),
    Int8(Box<Int8Weight>),
}

#[derive(Debug, Default)]
struct Statistics {
    calls: u64,
    outlier_columns: u64,
    outlier_values: u64,
    values: u64,
}

impl CpuLinear {
    pub(super) fn load(
        kernel: Kernel,
        site: Site,
        source: &LinearSource,
        precision: &Precision,
    ) -> Result<Self, Error> {
        let weight = match precision {
            Precision::Float => {
                let weight = FloatWeight::new(&source.float()?, 0..source.outputs());
                source.release();
                Weight::Float(weight)
            }
            Precision::Int8(quantization) => {
                Weight::Int8(Box::new(Int8Weight::load(kernel, source, quantization)?))
            }
        };
        let bias = source.bias().map(<[f32]>::to_vec);
        Ok(Self { site, name: source.name().to_owned(), kernel, weight, bias, statistics: Mutex::default() })
    }

    /// The head whose weight is these rows of an embedding.
    pub(super) fn tied(
        kernel: Kernel,
        site: Site,
        embedding: &RowTable,
        rows: Range<usize>,
    ) -> Result<Self, Error> {
        let weight = Weight::Float(FloatWeight::new(&embedding.matrix()?, rows));
        let name = "tied head".to_owned();
        Ok(Self { site, name, kernel, weight, bias: None, statistics: Mutex::default() })
    }

    /// `out [M, N] (+)= x [M, K] · Wᵀ + b` of an int8 layer, counted in its statistics; of a layer in floating point an error,
    /// since `x` is quantised for int8 weights alone.
    pub(super) fn apply_quantized(
        &self,
        x: &QuantizedActivations,
        store: Store,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), Error> {
        let Some(weight) = self.packed() else {
            return Err(Error::Input(format!(
                "{}: quantised input for a layer in floating point",
                self.name
            )));
        };
        int8_cpu::multiply(x, weight, self.outlier_weights(), self.bias(), store, out)?;
        let (rows, inner) = x.dim();
        self.count(x.stats(), rows * inner);
        Ok(())
    }

    /// `out [M, N] (+)= x [M, K] · Wᵀ + b`, counted in the layer's statistics.
    pub(super) fn apply(
        &self,
        x: ArrayView2<'_, f32>,
        store: Store,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), Error> {
        let values = x.len();
        if let Some(stats) = self.product(x, store, out)? {
            self.count(stats, values);
        }
        Ok(())
    }

    /// As [`apply`](Self::apply), in products of few rows: those in floating point sum in another order from 17 rows on, and neither
    /// the choice of a token's experts nor its recurrent state may depend on how many tokens there are.
    pub(super) fn apply_by_rows(
        &self,
        x: ArrayView2<'_, f32>,
        store: Store,
        mut out: ArrayViewMut2<'_, f32>,
    ) -> Result<(), Error> {
        const ROWS: usize = 16;
        let pairs = x.axis_chunks_iter(Axis(0), ROWS).zip(out.axis_chunks_iter_mut(Axis(0), ROWS));
        pairs.into_iter().try_for_each(|(x, out)| self.apply(x, store, out))
    }

    /// `y [M, N] = x [M, K] · Wᵀ + b` beside the model: not counted in its statistics.
    ///
    /// # Errors
    /// When `x` has not K columns or its rows are not contiguous.
    pub fn multiply(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>, Error> {
        let mut y = Array2::zeros((x.nrows(), self.outputs()));
        self.product(x, Store::Overwrite, y.view_mut())?;
        Ok(y)
    }

    fn product(
        &self,
        x: ArrayView2<'_, f32>,
        store: Store,
        out: ArrayViewMut2<'_, f32>,
    ) -> Result<Option<LinearStats>, Error> {
        let bias = self.bias();
        Ok(match &self.weight {
            Weight::Float(matrix) => {
                matrix.multiply(self.kernel, x, bias, store, out)?;
                None
            }
            Weight::Int8(weight) => Some(weight.multiply(x, bias, store, out)?),
        })
    }

    /// Counts one call whose input of `values` elements had these outliers.
    pub(super) fn count(&self, stats: LinearStats, values: usize) {
        let mut statistics = self.statistics.lock().unwrap_or_else(PoisonError::into_inner);
        statistics.calls += 1;
        statistics.outlier_columns += convert::bytes(stats.outlier_columns);
        statistics.outlier_values += convert::bytes(stats.outlier_values);
        statistics.values += convert::bytes(values);
    }

    /// Where it stands in the model.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Name of the layer in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bias `[N]`.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// The codes, if the layer is int8.
    pub fn packed(&self) -> Option<&PackedWeight> {
        self.int8().map(|weight| &weight.packed)
    }

    /// How inputs are quantised, if the layer is int8.
    pub fn config(&self) -> Option<&Config> {
        self.int8().map(|weight| &weight.config)
    }

    /// What the outliers of an input are multiplied with.
    pub fn outlier_weights(&self) -> int8_cpu::OutlierWeights<'_> {
        self.int8().map_or(int8_cpu::OutlierWeights::Dequantized, Int8Weight::outlier_weights)
    }

    fn int8(&self) -> Option<&Int8Weight> {
        match &self.weight {
            Weight::Int8(weight) => Some(weight),
            Weight::Float(_) => None,
        }
    }

    fn exact(&self) -> Option<&ExactColumnCache> {
        self.int8()?.exact.as_ref()
    }

    /// Outputs N.
    pub(super) fn outputs(&self) -> usize {
        self.dim().0
    }

    /// Inputs K.
    pub(super) fn inputs(&self) -> usize {
        self.dim().1
    }

    fn dim(&self) -> (usize, usize) {
        match &self.weight {
            Weight::Float(matrix) => matrix.dim(),
            Weight::Int8(weight) => weight.packed.dim(),
        }
    }

    pub(super) fn statistics(&self) -> LinearStatistics {
        let mut column_calls = vec![0; self.inputs()];
        if let Some(exact) = self.exact() {
            exact.count_calls(&mut column_calls);
        }
        let statistics = self.statistics.lock().unwrap_or_else(PoisonError::into_inner);
        LinearStatistics {
            name: self.name.clone(),
            inputs: column_calls.len(),
            calls: statistics.calls,
            outlier_columns: statistics.outlier_columns,
            outlier_values: statistics.outlier_values,
            values: statistics.values,
            column_calls,
            exact_columns: self.exact().map_or(0, ExactColumnCache::len),
        }
    }

    pub(super) fn reset_statistics(&self) {
        *self.statistics.lock().unwrap_or_else(PoisonError::into_inner) = Statistics::default();
        if let Some(exact) = self.exact() {
            exact.reset_calls();
        }
    }

    /// Bytes of weight, bias and exact columns.
    pub(super) fn bytes(&self) -> usize {
        let weight = match &self.weight {
            Weight::Float(matrix) => matrix.bytes(),
            Weight::Int8(weight) => weight.bytes(),
        };
        weight + self.bias().map_or(0, size_of_val)
    }
}
