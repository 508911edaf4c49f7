//! Thresholds relative to a row: its mean magnitude, or the lower median of its magnitudes.

use int8_core::RowStatistic;

use super::encode::BLOCK;
use crate::convert;
use crate::simd::{Instructions, LANES};

/// `tau · statistic(row)`, or +∞ where the statistic is 0 or not finite: bit for bit the reference's threshold.
#[inline(always)]
pub(crate) fn relative_threshold<I: Instructions>(
    simd: I,
    blocks: &[[f32; BLOCK]],
    inner: usize,
    tau: f32,
    statistic: RowStatistic,
    scratch: &mut Vec<u32>,
) -> f32 {
    let values = &blocks.as_flattened()[..inner];
    let level = match statistic {
        RowStatistic::MeanAbs => {
            // In order, as the reference sums: another order could round differently.
            let sum: f64 = values.iter().map(|value| f64::from(value.abs())).sum();
            convert::f64_to_f32(sum / convert::count(values.len()))
        }
        _ => lower_median(simd, blocks, scratch),
    };
    if level > 0.0 && level.is_finite() { tau * level } else { f32::INFINITY }
}

/// Magnitudes that are ordered one by one once the search has narrowed to so many.
const FEW: u32 = 12;

/// The lower median of the non-zero magnitudes; 0 if there are none, NaN if there is a NaN. Values in whole blocks, zeros
/// behind the last.
///
/// Magnitudes of floats order like their bits: the range that holds the median is halved, counting the magnitudes below
/// the middle 16 at a time, until few are left in it.
#[inline(always)]
fn lower_median<I: Instructions>(simd: I, blocks: &[[f32; BLOCK]], candidates: &mut Vec<u32>) -> f32 {
    let vectors = blocks.as_flattened().as_chunks::<LANES>().0;
    let mut most = simd.splat_int(0);
    for values in vectors {
        most = simd.maximum_int(most, simd.magnitude(simd.load(values)));
    }
    let largest = simd.largest_int(most);
    if largest > f32::INFINITY.to_bits().cast_signed() {
        return f32::NAN;
    }
    let all = convert::index(blocks.len() * BLOCK);
    let zeros = count_up_to(simd, vectors, 0);
    if zeros == all {
        return 0.0;
    }
    // The position of the median among all magnitudes, zeros first; `low` and `high` have at most, and more than, so many
    // magnitudes up to them.
    let position = zeros + (all - zeros - 1) / 2;
    let (mut low, mut below) = (0, zeros);
    let (mut high, mut up_to) = (largest, all);
    while up_to - below > FEW && high - low > 1 {
        let middle = low + (high - low) / 2;
        let count = count_up_to(simd, vectors, middle);
        if count > position {
            (high, up_to) = (middle, count);
        } else {
            (low, below) = (middle, count);
        }
    }
    candidates.clear();
    let wanted = low.cast_unsigned() + 1..=high.cast_unsigned();
    // Behind infinity comes a NaN, below which everything is.
    let least = simd.splat(f32::from_bits(*wanted.start()));
    let beyond = simd.splat(f32::from_bits(*wanted.end() + 1));
    for values in vectors {
        if simd.any_reaches(simd.below(simd.load(values), beyond), least) {
            let bits = values.iter().map(|value| value.abs().to_bits());
            candidates.extend(bits.filter(|bits| wanted.contains(bits)));
        }
    }
    f32::from_bits(*candidates.select_nth_unstable((position - below) as usize).1)
}

/// How many magnitudes have at most these bits.
#[inline(always)]
fn count_up_to<I: Instructions>(simd: I, vectors: &[[f32; LANES]], bits: i32) -> u32 {
    let limit = simd.splat_int(bits);
    let mut counts = simd.splat_int(0);
    for values in vectors {
        counts = simd.count_up_to(counts, simd.magnitude(simd.load(values)), limit);
    }
    simd.sum_int(counts).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use int8_core::FloatSlice;
    use int8_core::corpus::Random;
    use ndarray::aview1;

    use super::*;
    use crate::kernel::Kernel;
    use crate::prologue::encode::widen;
    use crate::simd::{Dispatch, Vectorize, Vectorized};

    struct Median<'a> {
        row: &'a [f32],
        scratch: &'a mut Vec<u32>,
    }

    impl Dispatch for Median<'_> {
        type Output = f32;

        fn run<K: Vectorize>(self, tile: K) -> f32 {
            tile.vectorize(self)
        }
    }

    impl Vectorized for Median<'_> {
        type Output = f32;

        #[inline(always)]
        fn call<I: Instructions>(self, simd: I) -> f32 {
            let mut padded = Vec::new();
            let blocks = widen(simd, FloatSlice::F32(self.row), &mut padded);
            lower_median(simd, blocks, self.scratch)
        }
    }

    #[test]
    fn statistics_are_those_of_the_reference() {
        let mut random = Random::new(5);
        let mut scratch = Vec::new();
        for length in [1, 2, 3, 4, 17, 64, 100, 1000] {
            for round in 0..50 {
                let row: Vec<f32> = (0..length)
                    .map(|_| match round % 5 {
                        0 => random.normal(),
                        1 => (random.normal() - 1.0).max(0.0),
                        2 => random.choose(&[0.0, -0.0, 1.0, -1.0, 1e-40]),
                        3 => random.normal() * f32::from(random.choose(&[1_i8, 100])) * 1e30,
                        _ => random.choose(&[1.0, 2.0, f32::INFINITY, f32::NAN, 3.0, 4.0, 5.0, 6.0]),
                    })
                    .collect();
                let expected = RowStatistic::MedianAbs.of(aview1(&row));
                for kernel in Kernel::available() {
                    let found = kernel.dispatch(Median { row: &row, scratch: &mut scratch });
                    assert!(
                        found == expected || (found.is_nan() && expected.is_nan()),
                        "{kernel}: {row:?}: {found}, {expected}"
                    );
                }
            }
        }
    }
}
