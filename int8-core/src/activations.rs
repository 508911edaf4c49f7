//! The prologue's result: activations as codes and outliers, computed once for all weights that read them.

use ndarray::{Array2, ArrayView2};

use crate::quantize::QuantizedMatrix;
use crate::scheme::Config;
use crate::{Element, Error, Outliers, find_outliers};

/// `x [M, K]` decomposed: int8 codes with their quantization parameters, and the outliers in floating point.
///
/// ```text
/// x[m,k] ≈ (q[m,k] − z[m])·s[m]/127   where (m,k) is no outlier
/// x[m,k]                              where it is: exact, as f32
/// ```
///
/// Shared by the projections of queries, keys and values, by gate and up, and by attention and MLP of a parallel block.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedActivations {
    quantized: QuantizedMatrix,
    outliers: Outliers,
    /// `f32 [M, |O|]`: the columns of [`Outliers::columns`], 0 where the value is no outlier.
    values: Array2<f32>,
}

impl QuantizedActivations {
    /// Detects the outliers of `x [M, K]` and quantises the other values, by `config`.
    ///
    /// # Errors
    /// [`Error::Threshold`].
    pub fn quantize<T: Element>(x: ArrayView2<T>, config: &Config) -> Result<Self, Error> {
        config.rule.validate()?;
        let outliers = find_outliers(x, &config.rule, config.outlier_granularity);
        let quantized = QuantizedMatrix::quantize_without(
            x,
            &outliers,
            config.input_encoding,
            config.input_granularity,
            config.row_maximum,
        );
        let columns = outliers.columns();
        let values = Array2::from_shape_fn((x.nrows(), columns.len()), |(m, o)| {
            if outliers.is_outlier(m, columns[o]) { x[[m, columns[o]]].to_f32() } else { 0.0 }
        });
        Ok(Self { quantized, outliers, values })
    }

    /// Codes `[M, K]`, scales and zero points; an outlier has the code that stands for 0.
    pub fn quantized(&self) -> &QuantizedMatrix {
        &self.quantized
    }

    /// Which values are outliers.
    pub fn outliers(&self) -> &Outliers {
        &self.outliers
    }

    /// `f32 [M, |O|]`: the outlier columns of `x`; with `Value` granularity 0 where a value is no outlier.
    pub fn outlier_values(&self) -> ArrayView2<'_, f32> {
        self.values.view()
    }

    /// Shape `(M, K)` of `x`.
    pub fn dim(&self) -> (usize, usize) {
        self.quantized.dim()
    }
}
