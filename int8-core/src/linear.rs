//! The whole layer: prologue, GEMM, epilogue (paper §3.2, eq. 8).
//!
//! Everything after the integer product is in f64 and rounded once to the output type, so that the reference's own error is
//! negligible beside a backend's.

use ndarray::{Array1, Array2, Array3, ArrayView1, ArrayView2, Axis};

use crate::quantize::QuantizedMatrix;
use crate::scheme::Config;
use crate::{Element, Error, Outliers, QuantizedActivations, product};

/// The weight of a linear layer, `W [N, K]` (output channels × input features), as int8 codes and exact columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Weight<T> {
    quantized: QuantizedMatrix,
    /// K entries: the exact values `[N]` of each column that is kept.
    exact: Vec<Option<Vec<T>>>,
}

impl<T: Element> Weight<T> {
    /// Quantises `w [N, K]` by `config`, without exact columns.
    pub fn quantize(w: ArrayView2<T>, config: &Config) -> Self {
        Self::from_quantized(QuantizedMatrix::quantize(w, config.weight_encoding, config.weight_granularity))
    }

    /// A weight that is int8 already, as from a bitsandbytes checkpoint.
    pub fn from_quantized(quantized: QuantizedMatrix) -> Self {
        let columns = quantized.dim().1;
        Self { quantized, exact: vec![None; columns] }
    }

    /// Keeps these columns of `w [N, K]` exactly; other outlier columns are dequantised.
    ///
    /// # Errors
    /// [`Error::Shape`] when `w` has another shape, [`Error::Column`] for an index of K or more.
    pub fn with_exact_columns(mut self, w: ArrayView2<T>, columns: &[usize]) -> Result<Self, Error> {
        if w.dim() != self.quantized.dim() {
            return Err(Error::Shape { what: "W", expected: self.quantized.dim(), found: w.dim() });
        }
        for &column in columns {
            let kept = self.exact.get_mut(column).ok_or(Error::Column { column, columns: w.ncols() })?;
            *kept = Some(w.column(column).to_vec());
        }
        Ok(self)
    }

    /// Keeps every column of `w [N, K]` exactly.
    ///
    /// # Errors
    /// [`Error::Shape`] when `w` has another shape.
    pub fn with_all_columns_exact(self, w: ArrayView2<T>) -> Result<Self, Error> {
        let columns: Vec<usize> = (0..w.ncols()).collect();
        self.with_exact_columns(w, &columns)
    }

    /// Codes, scales and zero points.
    pub fn quantized(&self) -> &QuantizedMatrix {
        &self.quantized
    }

    /// The exact values `[N]` of a column, if kept.
    pub fn exact_column(&self, column: usize) -> Option<&[T]> {
        self.exact.get(column).and_then(Option::as_deref)
    }

    /// The weight that an outlier of feature `k` is multiplied with in output channel `n`.
    fn outlier_value(&self, n: usize, k: usize) -> f64 {
        match &self.exact[k] {
            Some(column) => f64::from(column[n].to_f32()),
            None => self.quantized.value(n, k),
        }
    }
}

/// The result of [`linear()`] with every intermediate that backends are compared on.
#[derive(Debug, Clone)]
pub struct LinearOutput<T> {
    /// `y [M, N]`, rounded once from [`exact`](Self::exact).
    pub y: Array2<T>,
    /// `y [M, N]` before rounding.
    pub exact: Array2<f64>,
    /// The outliers of `x`.
    pub outliers: Outliers,
    /// Codes of `x [M, K]`, scales and zero points.
    pub input: QuantizedMatrix,
    /// The plain integer product `[M, N]`, before the zero-point correction.
    pub accumulator: Array2<i32>,
    /// `Σ_{k ∈ g} (q_x − z_x)(q_w − z_w)` `[G, M, N]`: after the zero-point correction; G = 1 without group granularity.
    pub products: Array3<i64>,
    /// The int8 part of `y`.
    pub int8_part: Array2<f64>,
    /// `[M, N]`: the sum over the groups of the magnitudes of `int8_part`'s terms.
    pub int8_magnitude: Array2<f64>,
    /// `Σ_{k outlier} |x[m, k]·W[n, k]|` `[M, N]`: the rounding error of the outlier part is proportional to it.
    pub outlier_magnitude: Array2<f64>,
    /// `Σ_{k outlier} |x[m, k]|` `[M]`: the factor of an absolute error of the outlier weights.
    pub outlier_input: Array1<f64>,
}

/// `y [M, N] = x [M, K] · Wᵀ + bias [N]`, decomposed by `config`.
///
/// # Errors
/// [`Error::InnerDimension`], [`Error::Length`] for the bias, [`Error::Threshold`], [`Error::AccumulatorOverflow`].
pub fn linear<T: Element>(
    x: ArrayView2<T>,
    weight: &Weight<T>,
    bias: Option<ArrayView1<f32>>,
    config: &Config,
) -> Result<LinearOutput<T>, Error> {
    check_operands(x.dim(), weight, bias)?;
    linear_quantized(&QuantizedActivations::quantize(x, config)?, weight, bias)
}

/// GEMM and epilogue of [`linear()`], for quantised activations that several weights may share.
///
/// # Errors
/// [`Error::InnerDimension`], [`Error::Length`] for the bias, [`Error::AccumulatorOverflow`].
pub fn linear_quantized<T: Element>(
    x: &QuantizedActivations,
    weight: &Weight<T>,
    bias: Option<ArrayView1<f32>>,
) -> Result<LinearOutput<T>, Error> {
    check_operands(x.dim(), weight, bias)?;
    let input = x.quantized();
    let accumulator = product::int8_product(input.codes(), weight.quantized.codes())?;
    let products = product::group_products(input, &weight.quantized)?;
    let (int8_part, int8_magnitude) = product::dequantize_groups(products.view(), input, &weight.quantized);
    let (outlier_part, outlier_magnitude) = outlier_product(x, weight);
    let outlier_input =
        x.outlier_values().map_axis(Axis(1), |row| row.iter().map(|x| f64::from(x.abs())).sum());

    let mut exact = &int8_part + &outlier_part;
    if let Some(bias) = bias {
        exact.axis_iter_mut(Axis(1)).zip(bias).for_each(|(mut column, bias)| column += f64::from(*bias));
    }
    Ok(LinearOutput {
        y: exact.mapv(T::from_f64),
        exact,
        outliers: x.outliers().clone(),
        input: input.clone(),
        accumulator,
        products,
        int8_part,
        int8_magnitude,
        outlier_magnitude,
        outlier_input,
    })
}

fn check_operands<T: Element>(
    (rows, x_inner): (usize, usize),
    weight: &Weight<T>,
    bias: Option<ArrayView1<f32>>,
) -> Result<(), Error> {
    let (outputs, w_inner) = weight.quantized.dim();
    if x_inner != w_inner {
        return Err(Error::InnerDimension { operation: "linear", rows, x_inner, outputs, w_inner });
    }
    match bias {
        Some(bias) if bias.len() != outputs => {
            Err(Error::Length { what: "bias", expected: outputs, found: bias.len() })
        }
        _ => Ok(()),
    }
}

/// `Σ_{k outlier of row m} x[m, k]·W[n, k]` `[M, N]`, and the same sum of magnitudes, in f64, in ascending k.
fn outlier_product<T: Element>(x: &QuantizedActivations, weight: &Weight<T>) -> (Array2<f64>, Array2<f64>) {
    let shape = (x.dim().0, weight.quantized.dim().0);
    let (mut sum, mut magnitude) = (Array2::zeros(shape), Array2::zeros(shape));
    for (m, values) in x.outlier_values().rows().into_iter().enumerate() {
        for (&k, value) in x.outliers().columns().iter().zip(values) {
            if !x.outliers().is_outlier(m, k) {
                continue;
            }
            for n in 0..shape.1 {
                let term = f64::from(*value) * weight.outlier_value(n, k);
                sum[[m, n]] += term;
                magnitude[[m, n]] += term.abs();
            }
        }
    }
    (sum, magnitude)
}

/// Input gradient `dX [M, K] = dY [M, N] · dequantise(W) [N, K]`, summed in f64 and rounded once. Straight-through: rounding `x`
/// to codes counts as the identity, as in bitsandbytes, so that adapters (LoRA) train through a frozen int8 layer.
///
/// # Errors
/// [`Error::InnerDimension`] unless `dY` has N columns.
pub fn input_gradient<T: Element>(dy: ArrayView2<T>, weight: &QuantizedMatrix) -> Result<Array2<T>, Error> {
    let ((rows, x_inner), (outputs, inner)) = (dy.dim(), weight.dim());
    if x_inner != outputs {
        return Err(Error::InnerDimension {
            operation: "input_gradient (dY·W)",
            rows,
            x_inner,
            outputs: inner,
            w_inner: outputs,
        });
    }
    Ok(Array2::from_shape_fn((rows, inner), |(m, k)| {
        T::from_f64((0..outputs).map(|n| f64::from(dy[[m, n]].to_f32()) * weight.value(n, k)).sum())
    }))
}
