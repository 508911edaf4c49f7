//! A linear layer of a model on the CPU: int8 or in floating point, with what it has met.

use std::sync::{Mutex, PoisonError};

use int8_cpu::{Kernel, Store};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use super::float::SharedMatrix;
use crate::backend::LinearStatistics;
use crate::precision::{Precision, Site};
use crate::weights::LinearSource;
use crate::{Error, Linear8bit, convert};

/// A linear layer on the CPU.
#[derive(Debug)]
pub struct CpuLinear {
    site: Site,
    name: String,
    kernel: Kernel,
    weight: Weight,
    statistics: Mutex<Statistics>,
}

#[derive(Debug)]
enum Weight {
    Float { matrix: SharedMatrix, bias: Option<Vec<f32>> },
    Int8(Box<Linear8bit>),
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
            Precision::Float => Weight::Float {
                matrix: SharedMatrix::new(source.float()?),
                bias: source.bias().map(<[f32]>::to_vec),
            },
            Precision::Int8(quantization) => {
                Weight::Int8(Box::new(Linear8bit::load(kernel, source, *quantization)?))
            }
        };
        Ok(Self { site, name: source.name().to_owned(), kernel, weight, statistics: Mutex::default() })
    }

    pub(super) fn from_matrix(kernel: Kernel, site: Site, name: &str, matrix: SharedMatrix) -> Self {
        let weight = Weight::Float { matrix, bias: None };
        Self { site, name: name.to_owned(), kernel, weight, statistics: Mutex::default() }
    }

    /// `out (+)= x · Wᵀ + b`.
    pub(super) fn apply(
        &self,
        x: ArrayView2<'_, f32>,
        out: ArrayViewMut2<'_, f32>,
        add: bool,
    ) -> Result<(), Error> {
        let store = if add { Store::Accumulate } else { Store::Overwrite };
        let layer = match &self.weight {
            Weight::Float { matrix, bias } => {
                return matrix.multiply(self.kernel, x, bias.as_deref(), store, out);
            }
            Weight::Int8(layer) => layer,
        };
        let met = layer.forward_into(x, store, out)?;
        let mut statistics = self.statistics.lock().unwrap_or_else(PoisonError::into_inner);
        statistics.calls += 1;
        statistics.outlier_columns += convert::bytes(met.outlier_columns);
        statistics.outlier_values += convert::bytes(met.outlier_values);
        statistics.values += convert::bytes(x.len());
        Ok(())
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
            Weight::Float { matrix, .. } => matrix.dim(),
            Weight::Int8(layer) => layer.weight().dim(),
        }
    }

    /// Where it stands in the model.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Name of the layer in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `y [M, N] = x [M, K] · Wᵀ + b` beside the model: not counted in its statistics.
    ///
    /// # Errors
    /// When `x` has not K columns or its rows are not contiguous.
    pub fn multiply(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>, Error> {
        match &self.weight {
            Weight::Int8(layer) => layer.forward(x),
            Weight::Float { matrix, bias } => {
                let mut y = Array2::zeros((x.nrows(), matrix.dim().0));
                matrix.multiply(self.kernel, x, bias.as_deref(), Store::Overwrite, y.view_mut())?;
                Ok(y)
            }
        }
    }

    pub(super) fn statistics(&self) -> LinearStatistics {
        let statistics = self.statistics.lock().unwrap_or_else(PoisonError::into_inner);
        let (column_calls, exact_columns) = match &self.weight {
            Weight::Float { matrix, .. } => (vec![0; matrix.dim().1], 0),
            Weight::Int8(layer) => (layer.column_calls(), layer.exact_columns()),
        };
        LinearStatistics {
            name: self.name.clone(),
            inputs: column_calls.len(),
            calls: statistics.calls,
            outlier_columns: statistics.outlier_columns,
            outlier_values: statistics.outlier_values,
            values: statistics.values,
            column_calls,
            exact_columns,
        }
    }

    pub(super) fn reset_statistics(&self) {
        *self.statistics.lock().unwrap_or_else(PoisonError::into_inner) = Statistics::default();
        if let Weight::Int8(layer) = &self.weight {
            layer.reset_calls();
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match &self.weight {
            Weight::Float { matrix, bias } => {
                matrix.bytes() + bias.as_ref().map_or(0, |bias| size_of_val(bias.as_slice()))
            }
            Weight::Int8(layer) => layer.bytes(),
        }
    }
}
