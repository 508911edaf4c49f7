//! Rows of 16-bit floats in the usual setting, absmax of a row without whole columns of outliers: quantised without being
//! widened into memory first.
//!
//! Magnitudes order like their bits, so what only compares them works on 16-bit integers, 32 to a register.
//! The loops are plain: of slices of any length, the compiler makes what one would write with the instructions of the
//! function they are inlined into.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use int8_core::{Element, Encoding};

use crate::convert;
use crate::rows::{Constants, Keep, Range};
use crate::tile::{Instructions, LANES, Lane};

/// All bits but the sign.
const MAGNITUDE: u16 = 0x7FFF;

/// A float of 16 bits.
pub(crate) trait Half: Lane + Element {
    /// The bits of +∞; those of NaNs are larger.
    const INFINITY: u16;
    fn bits(row: &[Self]) -> &[u16];
    fn from_bits(bits: u16) -> Self;
}

impl Half for f16 {
    const INFINITY: u16 = f16::INFINITY.to_bits();
    fn bits(row: &[Self]) -> &[u16] {
        row.reinterpret_cast()
    }
    fn from_bits(bits: u16) -> Self {
        Self::from_bits(bits)
    }
}

impl Half for bf16 {
    const INFINITY: u16 = bf16::INFINITY.to_bits();
    fn bits(row: &[Self]) -> &[u16] {
        row.reinterpret_cast()
    }
    fn from_bits(bits: u16) -> Self {
        Self::from_bits(bits)
    }
}

/// The bits of the smallest magnitude that reaches a threshold, which is positive.
fn least_reaching<T: Half>(threshold: f32) -> u16 {
    let nearest = T::from_f32(threshold);
    T::bits(&[nearest])[0] + u16::from(nearest.to_f32() < threshold)
}

/// Sets the flag of every column in which this row has an outlier, `|x| ≥ threshold`.
#[inline(always)]
pub(crate) fn flag_outliers<T: Half>(row: &[T], threshold: f32, flags: &mut [u8]) {
    let least = least_reaching::<T>(threshold);
    let span = T::INFINITY - least;
    for (bits, flag) in T::bits(row).iter().zip(flags) {
        *flag |= u8::from((bits & MAGNITUDE).wrapping_sub(least) <= span);
    }
}

/// For [`quantize`]: all bits but the sign for columns that take part, none for the others.
pub(crate) fn mask(columns: usize, outliers: &[usize]) -> Vec<u16> {
    let mut mask = vec![MAGNITUDE; columns];
    outliers.iter().for_each(|column| mask[*column] = 0);
    mask
}

/// Absmax constants of the columns that take part, and the sum of the codes; the codes of all K, plus `offset`, are
/// written, and what lies behind them gets the code of 0. `keep` says of f32 what `magnitudes`, from [`mask`], says of bits.
#[inline(always)]
pub(crate) fn quantize<I: Instructions, T: Half>(
    simd: I,
    row: &[T],
    magnitudes: &[u16],
    keep: Keep<'_>,
    offset: u8,
    codes: &mut [i8],
) -> (Constants, i32) {
    let mut largest = 0;
    for (bits, mask) in T::bits(row).iter().zip(magnitudes) {
        largest = largest.max(bits & mask);
    }
    let constants = Constants::new(Range::up_to(T::from_bits(largest).to_f32()), Encoding::Absmax);
    let Some(inverse) = constants.inverse() else {
        codes.fill(convert::code_byte(0, offset));
        return (constants, 0);
    };
    let inverse = simd.splat(inverse);
    let (vectors, rest) = row.as_chunks::<LANES>();
    let (targets, behind) = codes.split_at_mut(row.len() - rest.len());
    let mut sums = simd.splat_int(0);
    // No code leaves [−127, 127]: of the values that take part, none is larger than the scale.
    for (index, (values, target)) in vectors.iter().zip(targets.as_chunks_mut().0).enumerate() {
        let values = keep.of(simd, index, T::load(simd, values));
        let code = simd.round(simd.multiply(values, inverse));
        sums = simd.add_int(sums, code);
        simd.store_codes(code, offset, target);
    }
    behind.fill(convert::code_byte(0, offset));
    if !rest.is_empty() {
        let mut values = [T::default(); LANES];
        values[..rest.len()].copy_from_slice(rest);
        let values = keep.of(simd, vectors.len(), T::load(simd, &values));
        let code = simd.round(simd.multiply(values, inverse));
        sums = simd.add_int(sums, code);
        let mut last = [0; LANES];
        simd.store_codes(code, offset, &mut last);
        behind[..rest.len()].copy_from_slice(&last[..rest.len()]);
    }
    (constants, simd.sum_int(sums))
}

#[cfg(test)]
mod tests {
    use int8_core::corpus::Random;

    use super::*;
    use crate::convert::Typed;
    use crate::kernel::{Dispatch, Kernel};
    use crate::rows::{self, scratch_length};
    use crate::tile::{TileKernel, Vectorized};

    fn thresholds<T: Half>() {
        for threshold in [1e-40, 1e-8, 0.3, 6.0, 6.01, 65_504.0, 65_505.0, 1e30, 3.4e38, f32::INFINITY] {
            let all: Vec<T> = (0..=u16::MAX).map(T::from_bits).collect();
            let mut flags = vec![0; all.len()];
            flag_outliers(&all, threshold, &mut flags);
            for (value, flag) in all.iter().zip(flags) {
                assert_eq!(flag == 1, value.to_f32().abs() >= threshold, "{value:?}, {threshold}");
            }
        }
    }

    #[test]
    fn outliers_are_those_of_the_widened_values() {
        thresholds::<f16>();
        thresholds::<bf16>();
    }

    /// A row quantised as it is, and widened first.
    struct BothWays<'a, T> {
        row: &'a [T],
        typed: Typed<'a>,
        outliers: &'a [usize],
        offset: u8,
    }

    impl<T: Half> Dispatch for BothWays<'_, T> {
        type Output = [(u32, i32, Vec<i8>); 2];

        fn run<K: TileKernel>(self, tile: K) -> Self::Output {
            tile.vectorize(self)
        }
    }

    impl<T: Half> Vectorized for BothWays<'_, T> {
        type Output = [(u32, i32, Vec<i8>); 2];

        #[inline(always)]
        fn call<I: Instructions>(self, simd: I) -> Self::Output {
            let Self { row, typed, outliers, offset } = self;
            let length = scratch_length(row.len());
            let mut columns = vec![u32::MAX; if outliers.is_empty() { 0 } else { length }];
            outliers.iter().for_each(|column| columns[*column] = 0);
            let keep = if outliers.is_empty() { Keep::All } else { Keep::Masked(&columns) };
            let (mut direct, mut widened, mut scratch) = (vec![99; length], vec![99; length], Vec::new());
            let (constants, sum) = quantize(simd, row, &mask(row.len(), outliers), keep, offset, &mut direct);
            let direct = (constants.scale.to_bits(), sum, direct);
            let blocks = rows::widen(simd, typed, &mut scratch);
            let range = rows::range(simd, blocks, keep, Encoding::Absmax);
            let constants = Constants::new(range, Encoding::Absmax);
            let sum = rows::encode(simd, blocks, row.len(), keep, constants, offset, &mut widened);
            [direct, (constants.scale.to_bits(), sum, widened)]
        }
    }

    fn both_ways<T: Half>(typed: fn(&[T]) -> Typed<'_>) {
        let mut random = Random::new(29);
        let special = [f32::NAN, f32::INFINITY, -65_504.0, 3e38, 1e-8, 1e-40, 0.0, -0.0];
        for length in (1..=66).chain([95, 96, 100, 127, 128, 130, 1000]) {
            for round in 0..12 {
                let mut row: Vec<T> = (0..length).map(|_| T::from_f32(random.normal())).collect();
                let outliers: &[usize] = if round % 2 == 0 { &[] } else { &[length / 3] };
                match round / 2 {
                    // One special value among the others, in the outlier column or next to it.
                    0 => row[length / 3] = T::from_f32(random.choose(&special)),
                    1 => row[length - 1] = T::from_f32(random.choose(&special)),
                    // Below the least scale; halves between two codes.
                    2 => row.iter_mut().for_each(|v| *v = T::from_f32(v.to_f32() * 1e-30)),
                    3 => row.iter_mut().for_each(|v| *v = T::from_f32((v.to_f32() * 8.0).round() * 0.5)),
                    4 => row.fill(T::from_f32(0.0)),
                    _ => {}
                }
                for kernel in Kernel::available() {
                    for offset in [0, 128] {
                        let typed = typed(&row);
                        let [direct, widened] =
                            kernel.dispatch(BothWays { row: &row, typed, outliers, offset });
                        assert_eq!(
                            direct, widened,
                            "{kernel}, offset {offset}, outliers {outliers:?}: {row:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn codes_are_those_of_the_widened_row() {
        both_ways::<f16>(|row| Typed::F16(row));
        both_ways::<bf16>(|row| Typed::Bf16(row));
    }
}
