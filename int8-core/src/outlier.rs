//! Outlier detection: the values of an activation matrix to be multiplied in floating point (paper §3.2, "mixed-precision
//! decomposition").

use ndarray::{Array1, Array2, ArrayView1, ArrayView2};

use crate::{Element, Error, convert};

/// The test for an outlier, value by value. NaN never passes; ±inf passes every rule but `None`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum OutlierRule {
    /// No decomposition: every value is quantised.
    #[default]
    None,
    /// `|x| ≥ threshold`: the paper's rule, with 6.0. The unit is that of `x`.
    Absolute(f32),
    /// `|x| ≥ tau · statistic(row)`: scales with each row, so that one `tau` suits every layer and model. A row whose statistic is
    /// 0 or not finite has no outliers but ±inf.
    RelativeToRow {
        /// Multiple of the row's statistic.
        tau: f32,
        /// The row's statistic.
        statistic: RowStatistic,
    },
}

/// A robust measure of the magnitude of a row's ordinary values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RowStatistic {
    /// Lower median of the magnitudes of *non-zero* values. After a ReLU more than half of a row is zero: the plain median would
    /// be 0.
    #[default]
    MedianAbs,
    /// Mean magnitude, zeros included, summed in f64 in the order of the row (exact in any order for f16).
    MeanAbs,
}

/// What becomes an outlier when a value reaches the threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutlierGranularity {
    /// Its column, in every row of the batch: the paper's reading. A row's result depends on the other rows.
    #[default]
    Column,
    /// The value alone. Batch-invariant: a row's result depends on that row alone.
    Value,
}

impl OutlierRule {
    /// Checks the rule's parameter.
    ///
    /// # Errors
    /// [`Error::Threshold`] when it is zero, negative or NaN. `+∞` is valid: only ±inf passes.
    pub fn validate(&self) -> Result<(), Error> {
        let (parameter, value) = match *self {
            Self::None => return Ok(()),
            Self::Absolute(threshold) => ("threshold", threshold),
            Self::RelativeToRow { tau, .. } => ("tau", tau),
        };
        if value > 0.0 { Ok(()) } else { Err(Error::Threshold { parameter, value }) }
    }

    /// The least magnitude of an outlier of this row; NaN for none.
    pub fn threshold<T: Element>(&self, row: ArrayView1<T>) -> f32 {
        match *self {
            Self::None => f32::NAN,
            Self::Absolute(threshold) => threshold,
            Self::RelativeToRow { tau, statistic } => {
                let level = statistic.of(row);
                if level > 0.0 && level.is_finite() { tau * level } else { f32::INFINITY }
            }
        }
    }
}

impl RowStatistic {
    /// The statistic of a row, in the unit of `x`. 0 for a row of zeros, NaN for one with a NaN.
    pub fn of<T: Element>(self, row: ArrayView1<T>) -> f32 {
        match self {
            Self::MedianAbs => {
                let mut magnitudes: Vec<f32> =
                    row.iter().map(|v| v.to_f32().abs()).filter(|v| *v != 0.0).collect();
                if magnitudes.is_empty() {
                    return 0.0;
                }
                if magnitudes.iter().any(|v| v.is_nan()) {
                    return f32::NAN;
                }
                let middle = (magnitudes.len() - 1) / 2;
                *magnitudes.select_nth_unstable_by(middle, f32::total_cmp).1
            }
            Self::MeanAbs if row.is_empty() => 0.0,
            Self::MeanAbs => {
                let sum: f64 = row.iter().map(|v| f64::from(v.to_f32().abs())).sum();
                convert::f64_to_f32(sum / convert::count(row.len()))
            }
        }
    }
}

/// The outliers of one activation matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outliers {
    reaching: Array2<bool>,
    outlier: Array2<bool>,
    columns: Vec<usize>,
}

/// Applies `rule` to `x [M, K]`; with `Column` granularity, a value that reaches the threshold makes its column outliers.
pub fn find_outliers<T: Element>(
    x: ArrayView2<T>,
    rule: &OutlierRule,
    granularity: OutlierGranularity,
) -> Outliers {
    let mut hits = Array2::from_elem(x.dim(), false);
    for (row, mut hit) in x.rows().into_iter().zip(hits.rows_mut()) {
        let threshold = rule.threshold(row);
        hit.zip_mut_with(&row, |hit, value| *hit = value.to_f32().abs() >= threshold);
    }
    let hit_columns: Array1<bool> =
        hits.columns().into_iter().map(|column| column.iter().any(|hit| *hit)).collect();
    let columns = hit_columns.iter().enumerate().filter(|(_, hit)| **hit).map(|(column, _)| column).collect();
    let outlier = match granularity {
        OutlierGranularity::Value => hits.clone(),
        OutlierGranularity::Column => Array2::from_shape_fn(x.dim(), |(_, column)| hit_columns[column]),
    };
    Outliers { reaching: hits, outlier, columns }
}

impl Outliers {
    /// No outliers in a matrix of this shape.
    pub fn none(shape: (usize, usize)) -> Self {
        Self {
            reaching: Array2::from_elem(shape, false),
            outlier: Array2::from_elem(shape, false),
            columns: Vec::new(),
        }
    }

    /// Columns with at least one outlier, ascending: the paper's set O.
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// Whether the value itself reaches the threshold.
    pub fn reaches_threshold(&self, row: usize, column: usize) -> bool {
        self.reaching[[row, column]]
    }

    /// Whether the value is an outlier: it reaches the threshold, or (`Column`) a value of its column does.
    pub fn is_outlier(&self, row: usize, column: usize) -> bool {
        self.outlier[[row, column]]
    }

    /// `|O| / K`; 0 for an empty matrix.
    pub fn column_fraction(&self) -> f64 {
        ratio(self.columns.len(), self.outlier.ncols())
    }

    /// Share of outliers among all values; 0 for an empty matrix.
    pub fn value_fraction(&self) -> f64 {
        ratio(self.outlier.iter().filter(|outlier| **outlier).count(), self.outlier.len())
    }

    /// Shape `(M, K)` of the matrix.
    pub fn dim(&self) -> (usize, usize) {
        self.outlier.dim()
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { convert::count(part) / convert::count(whole) }
}
