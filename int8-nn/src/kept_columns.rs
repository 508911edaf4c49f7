//! Which columns of an int8 weight are kept exactly by a device that cannot read them from the checkpoint when an outlier comes:
//! those that held outliers most often during calibration.

/// One column in so many is kept at most: in 16 bits, 1/16 of the memory of the int8 weight.
const SHARE: usize = 32;

/// Most columns that are kept of a weight with `inputs` columns.
pub(crate) fn limit(inputs: usize) -> usize {
    inputs.div_ceil(SHARE)
}

/// For each column of a weight, in how many calls of its layer it held an outlier.
#[derive(Debug, Clone)]
pub(crate) struct OutlierCounts(Vec<u32>);

impl OutlierCounts {
    /// For a weight with `inputs` columns.
    pub(crate) fn new(inputs: usize) -> Self {
        Self(vec![0; inputs])
    }

    /// Counts one call, in which these columns held outliers.
    pub(crate) fn add(&mut self, columns: &[usize]) {
        for column in columns {
            if let Some(count) = self.0.get_mut(*column) {
                *count = count.saturating_add(1);
            }
        }
    }

    /// The `limit` columns that held outliers most often, ascending; of equally frequent ones the first. No column that held none.
    pub(crate) fn most_frequent(&self, limit: usize) -> Vec<usize> {
        let mut columns: Vec<usize> = (0..self.0.len()).filter(|column| self.0[*column] > 0).collect();
        // A stable sort.
        columns.sort_by_key(|column| std::cmp::Reverse(self.0[*column]));
        columns.truncate(limit);
        columns.sort_unstable();
        columns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_columns_are_kept() {
        let mut counts = OutlierCounts::new(8);
        assert!(counts.most_frequent(3).is_empty());
        for columns in [&[1, 5, 7][..], &[5], &[], &[0, 5, 7], &[3]] {
            counts.add(columns);
        }
        assert_eq!(counts.most_frequent(1), [5]);
        assert_eq!(counts.most_frequent(2), [5, 7]);
        assert_eq!(counts.most_frequent(3), [0, 5, 7], "of equally frequent columns the first");
        assert_eq!(counts.most_frequent(8), [0, 1, 3, 5, 7], "columns without outliers are not kept");
        assert!(counts.most_frequent(0).is_empty());
    }

    #[test]
    fn a_column_that_is_not_there_is_not_counted() {
        let mut counts = OutlierCounts::new(2);
        counts.add(&[2, 1]);
        assert_eq!(counts.most_frequent(9), [1]);
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
