//! Which columns of an int8 weight are kept exactly by a device that cannot read them from the checkpoint when an outlier comes:
//! those with the largest `Σ x²` over the outliers of a calibration. An outlier times the error of its dequantised weight is the
//! error of the product, and the errors of a weight's columns are alike.

use int8_core::OutlierRule;
use ndarray::{ArrayView2, s};
use rayon::prelude::*;

/// One column in so many is kept at most: in 16 bits, 1/16 of the memory of the int8 weight.
const SHARE: usize = 32;

/// Most columns that are kept of a weight with `inputs` columns.
pub(crate) fn limit(inputs: usize) -> usize {
    inputs.div_ceil(SHARE)
}

/// For each column of a weight, the sum of the squares of its input's outliers.
#[derive(Debug, Clone)]
pub(crate) struct OutlierSquares(Vec<f64>);

impl OutlierSquares {
    /// For a weight with `inputs` columns.
    pub(crate) fn new(inputs: usize) -> Self {
        Self(vec![0.0; inputs])
    }

    /// Adds the outliers of `x f32 [rows, inputs]`.
    pub(crate) fn add(&mut self, x: ArrayView2<'_, f32>, rule: &OutlierRule) {
        /// Columns of a task.
        const TASK: usize = 1024;
        let thresholds: Vec<f32> = x.rows().into_iter().map(|row| rule.threshold(row)).collect();
        self.0.par_chunks_mut(TASK).enumerate().for_each(|(task, sums)| {
            let first = task * TASK;
            let columns = x.slice(s![.., first..first + sums.len()]);
            for (row, threshold) in columns.rows().into_iter().zip(&thresholds) {
                for (sum, value) in sums.iter_mut().zip(row) {
                    if value.abs() >= *threshold {
                        *sum += f64::from(*value) * f64::from(*value);
                    }
                }
            }
        });
    }

    /// The `limit` columns with the largest sums, ascending; of equal ones the first. No column without outliers.
    pub(crate) fn largest(&self, limit: usize) -> Vec<usize> {
        let mut columns: Vec<usize> = (0..self.0.len()).filter(|column| self.0[*column] > 0.0).collect();
        // A stable sort.
        columns.sort_by(|a, b| self.0[*b].total_cmp(&self.0[*a]));
        columns.truncate(limit);
        columns.sort_unstable();
        columns
    }
}

#[cfg(test)]
mod tests {
    use int8_core::RowStatistic;
    use ndarray::array;

    use super::*;

    #[test]
    fn the_columns_with_the_largest_outliers_are_kept() {
        let mut squares = OutlierSquares::new(6);
        let rule = OutlierRule::Absolute(6.0);
        assert!(squares.largest(3).is_empty());
        // 5.9 is no outlier, however often; nor is NaN.
        squares.add(array![[0.0, -7.0, 5.9, 6.0, f32::NAN, 6.0]].view(), &rule);
        squares.add(array![[0.0, 7.0, 5.9, 0.0, 1.0, 6.0], [0.0, 1.0, -5.9, 6.0, 1.0, 0.0]].view(), &rule);
        assert_eq!(squares.largest(1), [1]);
        assert_eq!(squares.largest(2), [1, 3], "of equal columns the first");
        assert_eq!(squares.largest(6), [1, 3, 5], "columns without outliers are not kept");
        assert!(squares.largest(0).is_empty());
        // One infinite value outweighs all others.
        squares.add(array![[f32::INFINITY, 0.0, 0.0, 0.0, 0.0, 0.0]].view(), &rule);
        assert_eq!(squares.largest(1), [0]);
    }

    #[test]
    fn a_rule_relative_to_the_row_counts_by_row() {
        let mut squares = OutlierSquares::new(4);
        let rule = OutlierRule::RelativeToRow { tau: 10.0, statistic: RowStatistic::MedianAbs };
        squares.add(array![[1.0, 1.0, 1.0, 11.0], [100.0, 100.0, 900.0, 100.0]].view(), &rule);
        assert_eq!(squares.largest(4), [3]);
        squares.add(array![[1.0, 1.0, 1.0, 11.0]].view(), &OutlierRule::None);
        assert_eq!(squares.largest(4), [3]);
    }

    #[test]
    fn kept_columns_take_a_sixteenth_of_the_codes() {
        for inputs in [0, 1, 31, 32, 33, 192, 4096, 11_008] {
            let most = limit(inputs);
            assert!(most * SHARE >= inputs && most * SHARE < inputs + SHARE, "{inputs}: {most}");
        }
        assert_eq!(2 * limit(4096), 4096 / 16);
    }
}
