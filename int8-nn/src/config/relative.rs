//! Relative position biases: the positions of T5.

use ndarray::{Array2, ArrayView2};

use super::RawConfig;
use crate::backend::{DistanceBias, Mask};
use crate::{Error, convert};

/// Buckets of distances that share a bias: small distances have one each, larger ones share buckets of logarithmically growing
/// width. Without causal mask, later positions have half of the buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buckets {
    /// Number of buckets.
    pub count: usize,
    /// From this distance on, all share the last bucket.
    pub max_distance: usize,
}

/// Largest `max_distance` accepted; the bias table has `2·max_distance + 1` entries a head.
const LARGEST_DISTANCE: usize = 1 << 16;

impl Buckets {
    /// Reads T5's keys.
    ///
    /// # Errors
    /// For fewer than 4 buckets, or a largest distance within those that have a bucket each.
    pub(crate) fn read(raw: &RawConfig) -> Result<Self, Error> {
        const COUNT: &str = "relative_attention_num_buckets";
        const DISTANCE: &str = "relative_attention_max_distance";
        let buckets = Self { count: raw.size_or(COUNT, 32)?, max_distance: raw.size_or(DISTANCE, 128)? };
        if buckets.count < 4 {
            return Err(raw.problem(COUNT, format!("is {}; expected at least 4", buckets.count)));
        }
        if !(buckets.count / 2 + 1..=LARGEST_DISTANCE).contains(&buckets.max_distance) {
            return Err(raw.problem(
                DISTANCE,
                format!(
                    "is {}; with {} buckets expected {} to {LARGEST_DISTANCE}",
                    buckets.max_distance,
                    buckets.count,
                    buckets.count / 2 + 1
                ),
            ));
        }
        Ok(buckets)
    }

    /// The bucket of a distance `key position − query position`.
    fn bucket(self, distance: isize, mask: Mask) -> usize {
        let (count, first) = match mask {
            Mask::Causal => (self.count, 0),
            Mask::Full if distance > 0 => (self.count / 2, self.count / 2),
            Mask::Full => (self.count / 2, 0),
        };
        let away = match mask {
            Mask::Causal if distance > 0 => 0,
            Mask::Causal | Mask::Full => distance.unsigned_abs(),
        };
        // Half of the buckets have one distance each; the others grow up to `max_distance`.
        let single = count / 2;
        if away < single {
            return first + away;
        }
        // In f32, as transformers: a bucket's border may depend on the rounding.
        let ratio = |distance: usize| convert::f64_from(distance) / convert::f64_from(single);
        let share = convert::f32_from(ratio(away)).ln() / convert::f32_from(ratio(self.max_distance).ln());
        let beyond = convert::floor(share * convert::f32_from(convert::f64_from(count - single)));
        first + (single + beyond).min(count - 1)
    }

    /// The bias of each distance from −max_distance to max_distance, of `table [count, heads]`.
    pub(crate) fn biases(self, table: ArrayView2<'_, f32>, mask: Mask) -> DistanceBias {
        let reach = self.max_distance;
        let middle = reach.cast_signed();
        let by_distance =
            |(head, index): (usize, usize)| table[[self.bucket(index.cast_signed() - middle, mask), head]];
        DistanceBias { table: Array2::from_shape_fn((table.ncols(), 2 * reach + 1), by_distance), reach }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Buckets of T5's own size (32, 128), from transformers' `_relative_position_bucket`.
    #[test]
    fn buckets_of_known_distances() {
        let buckets = Buckets { count: 32, max_distance: 128 };
        let of = |mask: Mask, distances: &[isize]| -> Vec<usize> {
            distances.iter().map(|distance| buckets.bucket(*distance, mask)).collect()
        };
        let distances = [0, -1, -7, -8, -11, -12, -15, -16, -31, -32, -63, -64, -91, -127, -128, -5000];
        assert_eq!(of(Mask::Full, &distances), FULL);
        assert_eq!(of(Mask::Causal, &distances), CAUSAL);
        assert_eq!(of(Mask::Full, &[1, 7, 8, 16, 64, 128, 900]), [17, 23, 24, 26, 30, 31, 31]);
        assert_eq!(of(Mask::Causal, &[1, 50]), [0, 0]);
    }

    const FULL: [usize; 16] = [0, 1, 7, 8, 8, 9, 9, 10, 11, 12, 13, 14, 15, 15, 15, 15];
    const CAUSAL: [usize; 16] = [0, 1, 7, 8, 11, 12, 15, 16, 21, 21, 26, 26, 29, 31, 31, 31];

    #[test]
    fn the_table_ends_where_the_last_bucket_begins() {
        let buckets = Buckets { count: 8, max_distance: 12 };
        let table = Array2::from_shape_fn((8, 1), |(bucket, _)| convert::f32_from(convert::f64_from(bucket)));
        let bias = buckets.biases(table.view(), Mask::Full);
        assert_eq!(bias.table.dim(), (1, 25));
        assert_eq!((bias.table[[0, 0]], bias.table[[0, 12]], bias.table[[0, 24]]), (3.0, 0.0, 7.0));
        for distance in [12, 13, 1000] {
            assert_eq!(buckets.bucket(-distance, Mask::Full), 3);
        }
    }
}
