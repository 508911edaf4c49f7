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
) -> f32 {
    let values = &blocks.as_flattened()[..inner];
    let level = match statistic {
        RowStatistic::MeanAbs => {
            // In order, as the reference sums: another order could round differently.
            let sum: f64 = values.iter().map(|value| f64::from(value.abs())).sum();
            convert::f64_to_f32(sum / convert::count(values.len()))
        }
        _ => lower_median(simd, blocks),
    };
    if level > 0.0 && level.is_finite() { tau * level } else { f32::INFINITY }
}

/// Magnitudes among which the median is found by comparing each with each: a vector of them.
const FEW: i32 = 16;

const _: () = assert!(FEW as usize == LANES);

/// How far beside the median, in magnitudes, the search aims: what is left on this side is few.
const ASIDE: i32 = 4;

/// Share of the magnitudes for each unit of ln(limit) at the median of a normal distribution.
const SLOPE: f32 = 0.43;

/// Guessed limits after which bits are halved: a distribution that is none of activations.
const GUESSES: usize = 8;

/// The lower median of the non-zero magnitudes; 0 if there are none, NaN if there is a NaN. Values in whole blocks, zeros
/// behind the last.
///
/// Magnitudes of floats order like their bits: the range that holds the median is narrowed, counting the magnitudes up to
/// a limit 16 at a time, until few are left in it. Limits are guessed. The first is 0.85 of the mean magnitude, the median of a normal
/// distribution; until the median lies between two of them the next follows from that distribution's density, then by interpolation.
/// Two to five limits for activations, where halving the bits takes eleven to thirteen.
#[inline(always)]
fn lower_median<I: Instructions>(simd: I, blocks: &[[f32; BLOCK]]) -> f32 {
    let vectors = blocks.as_flattened().as_chunks::<LANES>().0;
    let zero = simd.splat_int(0);
    let (mut most, mut counts, mut sums) = (zero, zero, simd.splat(0.0));
    for values in vectors {
        let values = simd.load(values);
        let magnitudes = simd.magnitude(values);
        most = simd.maximum_int(most, magnitudes);
        counts = simd.count_up_to(counts, magnitudes, zero);
        sums = simd.add(sums, simd.maximum(values, simd.multiply(values, simd.splat(-1.0))));
    }
    let largest = simd.largest_int(most);
    if largest > f32::INFINITY.to_bits().cast_signed() {
        return f32::NAN;
    }
    let all = convert::wrap(convert::length(blocks.len() * BLOCK));
    let zeros = simd.sum_int(counts);
    if zeros == all {
        return 0.0;
    }
    let mut sum = [0.0; LANES];
    simd.store(sums, &mut sum);
    // The position of the median among all magnitudes, zeros first; `low` and `high` have at most, and more than, so many
    // magnitudes up to them.
    let position = zeros + (all - zeros - 1) / 2;
    let (mut low, mut below) = (0, zeros);
    let (mut high, mut up_to) = (largest, all);
    let count = convert::accumulator(all - zeros);
    let mut limit = 0.85 * sum.iter().sum::<f32>() / count;
    let mut guesses = 0;
    while up_to - below > FEW && high - low > 1 {
        let bits = limit.to_bits().cast_signed().clamp(low + 1, high - 1);
        let found = count_up_to(simd, vectors, bits);
        if found > position {
            (high, up_to) = (bits, found);
        } else {
            (low, below) = (bits, found);
        }
        guesses += 1;
        limit = if guesses > GUESSES {
            float(low + (high - low) / 2)
        } else if low == 0 || high == largest {
            let aim = if found > position { position - ASIDE } else { position + ASIDE };
            float(bits) * (1.0 + convert::accumulator(aim - found) / (SLOPE * count)).max(0.25)
        } else {
            let aim = if up_to - position > position - below { position + ASIDE } else { position - ASIDE };
            let share = convert::accumulator(aim - below) / convert::accumulator(up_to - below);
            float(low) + (float(high) - float(low)) * share
        };
    }
    if high - low == 1 {
        return float(high);
    }
    let mut few = [i32::MAX; LANES];
    let mut found = 0;
    // Behind infinity comes a NaN, below which everything is.
    let least = simd.splat(float(low + 1));
    let beyond = simd.splat(float(high + 1));
    for values in vectors {
        let mut lanes = simd.reaching(simd.below(simd.load(values), beyond), least);
        while lanes != 0 {
            few[found] = values[lanes.trailing_zeros() as usize].abs().to_bits().cast_signed();
            found += 1;
            lanes &= lanes - 1;
        }
    }
    // How many of them are at most as large as each.
    let (each, mut ranks) = (simd.load_int(&few), zero);
    for one in &few[..found] {
        ranks = simd.count_up_to(ranks, simd.splat_int(*one), each);
    }
    let mut positions = [0; LANES];
    simd.store_int(ranks, &mut positions);
    let mut median = high;
    for (bits, rank) in few.into_iter().zip(positions) {
        if rank > position - below {
            median = median.min(bits);
        }
    }
    float(median)
}

/// The magnitude that has these bits.
#[inline(always)]
fn float(bits: i32) -> f32 {
    f32::from_bits(bits.cast_unsigned())
}

/// How many magnitudes have at most these bits.
#[inline(always)]
fn count_up_to<I: Instructions>(simd: I, vectors: &[[f32; LANES]], bits: i32) -> i32 {
    let limit = simd.splat_int(bits);
    let mut counts = simd.splat_int(0);
    for values in vectors {
        counts = simd.count_up_to(counts, simd.magnitude(simd.load(values)), limit);
    }
    simd.sum_int(counts)
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

    struct Median<'a>(&'a [f32]);

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
            let blocks = widen(simd, FloatSlice::F32(self.0), &mut padded);
            lower_median(simd, blocks)
        }
    }

    #[test]
    fn statistics_are_those_of_the_reference() {
        let mut random = Random::new(5);
        for length in [1, 2, 3, 4, 17, 64, 100, 1000, 2048] {
            for round in 0..50 {
                let row: Vec<f32> = (0..length)
                    .map(|_| match round % 8 {
                        0 => random.normal(),
                        1 => (random.normal() - 1.0).max(0.0),
                        2 => random.choose(&[0.0, -0.0, 1.0, -1.0, 1e-40]),
                        3 => random.normal() * f32::from(random.choose(&[1_i8, 100])) * 1e30,
                        4 => random.normal() * random.choose(&[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1e36]),
                        5 => random.normal().powi(9),
                        6 => f32::from_bits(0x3f80_0000 + random.choose(&[0, 1, 2, 1 << 20])),
                        _ => random.choose(&[1.0, 2.0, f32::INFINITY, f32::NAN, 3.0, 4.0, 5.0, 6.0]),
                    })
                    .collect();
                let expected = RowStatistic::MedianAbs.of(aview1(&row));
                for kernel in Kernel::available() {
                    let found = kernel.dispatch(Median(&row));
                    assert!(
                        found == expected || (found.is_nan() && expected.is_nan()),
                        "{kernel}: {row:?}: {found}, {expected}"
                    );
                }
            }
        }
    }
}
