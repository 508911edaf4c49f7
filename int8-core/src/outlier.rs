//! Which values of an activation matrix leave the int8 product (paper §3.2, "mixed-precision decomposition").

use ndarray::{Array1, Array2, ArrayView1, ArrayView2};

use crate::{Element, Error, convert};

/// The test a single value of `x` has to pass to count as an outlier. NaN never passes; ±inf always does.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum OutlierRule {
    /// Nothing leaves the int8 product.
    #[default]
    None,
    /// `|x| ≥ threshold`: the paper's rule, with 6.0. The unit is that of `x`.
    Absolute(f32),
    /// `|x| ≥ tau · statistic(row)`: follows the scale of each row, so that it means the same in every layer and
    /// model. A row whose statistic is 0 or not finite has no outliers, except ±inf.
    RelativeToRow {
        /// Multiple of the row's statistic.
        tau: f32,
        /// What the row is compared to.
        statistic: RowStatistic,
    },
}

/// A robust measure of how large the ordinary values of a row are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RowStatistic {
    /// The lower median of the magnitudes of the row's *non-zero* values. Zeros are left out because a ReLU
    /// makes more than half of a row zero: the plain median would call every other value an outlier.
    #[default]
    MedianAbs,
    /// The mean magnitude of the row, zeros included, summed in f64 in the order of the row (for f16 exact in any order).
    /// One pass, no selection.
    MeanAbs,
}

/// What leaves the int8 product once a value was found to be an outlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutlierGranularity {
    /// The whole column, for every row of the batch: the paper's reading. A row's result depends on its neighbours.
    #[default]
    Column,
    /// That value only. A row's result depends on that row alone: batch-invariant.
    Value,
}

impl OutlierRule {
    /// Checks the rule's parameter.
    ///
    /// # Errors
    /// [`Error::Threshold`] when it is zero, negative or NaN. `+∞` is valid: only ±inf values pass.
    pub fn validate(&self) -> Result<(), Error> {
        let (parameter, value) = match *self {
            Self::None => return Ok(()),
            Self::Absolute(threshold) => ("threshold", threshold),
            Self::RelativeToRow { tau, .. } => ("tau", tau),
        };
        if value > 0.0 { Ok(()) } else { Err(Error::Threshold { parameter, value }) }
    }

    /// The magnitude from which on a value of this row is an outlier. NaN: no value is.
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
    /// The statistic of one row, in the unit of `x`. 0 for a row of zeros, NaN for a row that holds a NaN.
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
    hits: Array2<bool>,
    left_out: Array2<bool>,
    columns: Vec<usize>,
}

/// Applies `rule` to `x [M, K]` and spreads the hits as `granularity` says.
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
    let left_out = match granularity {
        OutlierGranularity::Value => hits.clone(),
        OutlierGranularity::Column => Array2::from_shape_fn(x.dim(), |(_, column)| hit_columns[column]),
    };
    Outliers { hits, left_out, columns }
}

impl Outliers {
    /// No outliers in a matrix of this shape.
    pub fn none(shape: (usize, usize)) -> Self {
        Self {
            hits: Array2::from_elem(shape, false),
            left_out: Array2::from_elem(shape, false),
            columns: Vec::new(),
        }
    }

    /// Columns of `x` that hold at least one outlier, ascending: the set O of the paper.
    pub fn columns(&self) -> &[usize] {
        &self.columns
    }

    /// Whether the value itself passed the rule.
    pub fn is_hit(&self, row: usize, column: usize) -> bool {
        self.hits[[row, column]]
    }

    /// Whether the value leaves the int8 product.
    pub fn is_left_out(&self, row: usize, column: usize) -> bool {
        self.left_out[[row, column]]
    }

    /// `|O| / K`, the share of columns with an outlier; 0 for an empty matrix.
    pub fn column_fraction(&self) -> f64 {
        ratio(self.columns.len(), self.left_out.ncols())
    }

    /// Share of all values that leave the int8 product; 0 for an empty matrix.
    pub fn value_fraction(&self) -> f64 {
        ratio(self.left_out.iter().filter(|left_out| **left_out).count(), self.left_out.len())
    }

    /// Shape `(M, K)` of the matrix.
    pub fn dim(&self) -> (usize, usize) {
        self.left_out.dim()
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { convert::count(part) / convert::count(whole) }
}
