//! Rows of 16-bit floats in the usual setting, absmax of a row without whole columns of outliers: quantised without being
//! widened in memory.
//!
//! Magnitudes order like their bits, so what only compares them works on 16-bit integers, 32 to a register.
//! The loops are plain: of slices of any length, the compiler makes what one would write with the instructions of the
//! function they are inlined into.

use std::ops::Range as Span;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use int8_core::{Element, Encoding, FloatSlice};

use super::encode::BLOCK;
use super::parameters::{Parameters, Range};
use crate::buffer::LINE;
use crate::convert;
use crate::matrix::Source;
use crate::prefetch;
use crate::simd::{Instructions, LANES, Lane};

/// All bits but the sign.
const MAGNITUDE: u16 = 0x7FFF;

/// Values that are compared, or widened, at a time.
const PAIR: usize = 2 * LANES;

/// A float of 16 bits.
pub(crate) trait Float16: Lane + Element {
    /// The bits of +∞; those of NaNs are larger.
    const INFINITY: u16;
    /// The values of a row of this type.
    ///
    /// # Panics
    /// If it is of another.
    fn of(row: FloatSlice<'_>) -> &[Self];
    fn bits(row: &[Self]) -> &[u16];
    fn from_bits(bits: u16) -> Self;
    /// 32 values, where there is a mask those with a mask of 0 as 0 (the others' is all ones), in an order that `store_codes`
    /// undoes.
    fn load_pair<I: Instructions>(simd: I, from: &[Self; PAIR], mask: Option<&[u16; PAIR]>)
    -> [I::Floats; 2];
    /// As [`Instructions::store_code_block`], of two pairs.
    fn store_codes<I: Instructions>(simd: I, codes: [I::Ints; 4], offset: u8, to: &mut [i8; BLOCK]);
}

impl Float16 for f16 {
    const INFINITY: u16 = f16::INFINITY.to_bits();
    fn of(row: FloatSlice<'_>) -> &[Self] {
        let FloatSlice::F16(row) = row else { unreachable!("rows of another type") };
        row
    }
    fn bits(row: &[Self]) -> &[u16] {
        row.reinterpret_cast()
    }
    fn from_bits(bits: u16) -> Self {
        Self::from_bits(bits)
    }
    #[inline(always)]
    fn load_pair<I: Instructions>(
        simd: I,
        from: &[Self; PAIR],
        mask: Option<&[u16; PAIR]>,
    ) -> [I::Floats; 2] {
        let mut kept = *from;
        for (kept, mask) in kept.iter_mut().zip(mask.into_iter().flatten()) {
            *kept = Self::from_bits(kept.to_bits() & mask);
        }
        let narrow = kept.as_chunks().0;
        [simd.load_f16(&narrow[0]), simd.load_f16(&narrow[1])]
    }
    #[inline(always)]
    fn store_codes<I: Instructions>(simd: I, codes: [I::Ints; 4], offset: u8, to: &mut [i8; BLOCK]) {
        simd.store_code_block(codes, offset, to);
    }
}

impl Float16 for bf16 {
    const INFINITY: u16 = bf16::INFINITY.to_bits();
    fn of(row: FloatSlice<'_>) -> &[Self] {
        let FloatSlice::Bf16(row) = row else { unreachable!("rows of another type") };
        row
    }
    fn bits(row: &[Self]) -> &[u16] {
        row.reinterpret_cast()
    }
    fn from_bits(bits: u16) -> Self {
        Self::from_bits(bits)
    }
    #[inline(always)]
    fn load_pair<I: Instructions>(
        simd: I,
        from: &[Self; PAIR],
        mask: Option<&[u16; PAIR]>,
    ) -> [I::Floats; 2] {
        simd.load_bf16_alternating(from, mask)
    }
    #[inline(always)]
    fn store_codes<I: Instructions>(simd: I, codes: [I::Ints; 4], offset: u8, to: &mut [i8; BLOCK]) {
        simd.store_code_block_alternating(codes, offset, to);
    }
}

/// The bits of the smallest magnitude that reaches a threshold, which is positive: at least 1, and at most those of +∞.
pub(crate) fn least_reaching<T: Float16>(threshold: f32) -> u16 {
    debug_assert!(threshold > 0.0, "rules are validated");
    let nearest = T::from_f32(threshold);
    T::bits(&[nearest])[0] + u16::from(nearest.to_f32() < threshold)
}

/// Sets the flag of every column in which one of these rows of x has an outlier, `|x| ≥ threshold`.
#[inline(always)]
pub(crate) fn flag_outliers<T: Float16>(x: Source<'_>, rows: Span<usize>, threshold: f32, flags: &mut [u8]) {
    let least = least_reaching::<T>(threshold);
    let mut keys = vec![u16::MAX; flags.len()];
    lower_by_rows::<T>(x, rows, least, &mut keys);
    let span = T::INFINITY - least;
    for (flag, key) in flags.iter_mut().zip(&keys) {
        *flag |= u8::from(*key <= span);
    }
}

/// Rows by which x is prefetched: input from L3 or memory comes twice as fast.
pub(crate) const ROWS_AHEAD: usize = 4;

/// Prefetches a row.
#[inline(always)]
pub(crate) fn prefetch_row<T: Float16>(row: &[T]) {
    for line in (0..row.len()).step_by(LINE / size_of::<T>()) {
        prefetch::prefetch(row.as_ptr().wrapping_add(line));
    }
}

/// Lowers the keys of columns to those of a row where they are less.
///
/// `key = (bits & 0x7FFF) − least (mod 2¹⁶)`, `least` being the bits of the least magnitude that reaches the threshold;
/// ascending: outliers, NaN, below the threshold. The least key finds outliers, the largest is the absmax below the threshold.
#[inline(always)]
pub(crate) fn lower_keys<T: Float16>(row: &[T], least: u16, keys: &mut [u16]) {
    for (bits, known) in T::bits(row).iter().zip(keys) {
        *known = (bits & MAGNITUDE).wrapping_sub(least).min(*known);
    }
}

/// The same of several rows, prefetched.
#[inline(always)]
pub(crate) fn lower_by_rows<T: Float16>(x: Source<'_>, rows: Span<usize>, least: u16, keys: &mut [u16]) {
    rows.clone().take(ROWS_AHEAD).for_each(|row| prefetch_row(T::of(x.row(row))));
    for row in rows.clone() {
        if row + ROWS_AHEAD < rows.end {
            prefetch_row(T::of(x.row(row + ROWS_AHEAD)));
        }
        lower_keys(T::of(x.row(row)), least, keys);
    }
}

/// The result of a scan of the columns that take part.
pub(crate) struct Scan {
    /// The bits of the largest magnitude below the threshold.
    pub(crate) below: u16,
    /// Whether there is an outlier or a NaN.
    pub(crate) others: bool,
}

/// Scans a row. `least` is that of [`lower_keys`], `mask` is from [`mask`].
#[inline(always)]
pub(crate) fn scan<T: Float16>(row: &[T], mask: &[u16], least: u16) -> Scan {
    let (mut largest, mut smallest) = (0, u16::MAX);
    for (bits, mask) in T::bits(row).iter().zip(mask) {
        let key = (bits & mask & MAGNITUDE).wrapping_sub(least);
        largest = key.max(largest);
        smallest = key.min(smallest);
    }
    let below = if largest >= least.wrapping_neg() { largest.wrapping_add(least) } else { 0 };
    Scan { below, others: smallest <= MAGNITUDE - least }
}

/// What the least keys of the columns say.
pub(crate) struct SpecialColumns {
    /// Those with an outlier, ascending.
    pub(crate) outliers: Vec<usize>,
    /// Those with a NaN and without an outlier.
    pub(crate) nan: Vec<usize>,
}

impl SpecialColumns {
    pub(crate) fn new<T: Float16>(least: u16, keys: &[u16]) -> Self {
        let (outlier_limit, nan_limit) = (T::INFINITY - least, MAGNITUDE - least);
        let mut columns = Self { outliers: Vec::new(), nan: Vec::new() };
        for (i, block) in keys.chunks(PAIR).enumerate() {
            // Most hold none: tested in vectors.
            if block.iter().fold(u16::MAX, |least, key| least.min(*key)) > nan_limit {
                continue;
            }
            for (column, key) in (i * PAIR..).zip(block) {
                match *key {
                    key if key <= outlier_limit => columns.outliers.push(column),
                    key if key <= nan_limit => columns.nan.push(column),
                    _ => {}
                }
            }
        }
        columns
    }
}

/// Writes the values of these columns.
#[inline(always)]
pub(crate) fn gather<T: Float16>(row: &[T], columns: &[usize], values: &mut [f32]) {
    for (column, value) in columns.iter().zip(values) {
        *value = row[*column].to_f32();
    }
}

/// The bits of a magnitude.
#[inline(always)]
pub(crate) fn magnitude<T: Float16>(value: T) -> u16 {
    T::bits(&[value])[0] & MAGNITUDE
}

/// For [`quantize`] and [`scan`]: all ones for columns that take part, 0 for the others.
pub(crate) fn mask(columns: usize, outliers: &[usize]) -> Vec<u16> {
    let mut mask = vec![u16::MAX; columns];
    outliers.iter().for_each(|column| mask[*column] = 0);
    mask
}

/// Absmax parameters of the columns that take part, and what [`encode`] says of their codes. `mask` is from [`mask`].
#[inline(always)]
pub(crate) fn quantize<I: Instructions, T: Float16, const SUM: bool>(
    simd: I,
    row: &[T],
    mask: &[u16],
    offset: u8,
    codes: &mut [i8],
) -> (Parameters, i32) {
    let mut largest = 0;
    for (bits, mask) in T::bits(row).iter().zip(mask) {
        largest = largest.max(bits & mask & MAGNITUDE);
    }
    let parameters = absmax::<T>(u32::from(largest));
    (parameters, encode::<I, T, SUM>(simd, row, Some(mask), parameters, offset, codes))
}

/// The parameters of values whose largest magnitude has these bits.
#[inline(always)]
pub(crate) fn absmax<T: Float16>(largest: u32) -> Parameters {
    Parameters::new(Range::up_to(T::from_bits(convert::low_half(largest)).to_f32()), Encoding::Absmax)
}

/// Writes the codes of all K, plus `offset`, those of columns that take no part and of what lies behind K as the code of 0;
/// the sum of the codes, if it is needed. Codes are whole blocks.
///
/// No code leaves [−127, 127] where no value that takes part is larger than the scale; else those of larger values, and of NaN,
/// are any.
#[inline(always)]
pub(crate) fn encode<I: Instructions, T: Float16, const SUM: bool>(
    simd: I,
    row: &[T],
    mask: Option<&[u16]>,
    parameters: Parameters,
    offset: u8,
    codes: &mut [i8],
) -> i32 {
    let Some(inverse) = parameters.inverse() else {
        codes.fill(convert::code_byte(0, offset));
        return 0;
    };
    let (inverse, mut sums) = (simd.splat(inverse), [simd.splat_int(0); 2]);
    let (blocks, rest) = row.as_chunks::<BLOCK>();
    let (targets, last) = codes.as_chunks_mut::<BLOCK>().0.split_at_mut(blocks.len());
    match mask.map(<[u16]>::as_chunks::<BLOCK>) {
        None => {
            for (values, target) in blocks.iter().zip(targets) {
                encode_block::<I, T, SUM>(simd, values, None, inverse, offset, &mut sums, target);
            }
        }
        Some((masks, _)) => {
            for ((values, mask), target) in blocks.iter().zip(masks).zip(targets) {
                encode_block::<I, T, SUM>(simd, values, Some(mask), inverse, offset, &mut sums, target);
            }
        }
    }
    if let (false, Some(last)) = (rest.is_empty(), last.first_mut()) {
        // Zeros get the code of 0.
        let mut values = [T::default(); BLOCK];
        values[..rest.len()].copy_from_slice(rest);
        let mut masks = [u16::MAX; BLOCK];
        if let Some(mask) = mask {
            masks[..rest.len()].copy_from_slice(&mask[row.len() - rest.len()..]);
        }
        encode_block::<I, T, SUM>(simd, &values, Some(&masks), inverse, offset, &mut sums, last);
    }
    if SUM { simd.sum_int(simd.add_int(sums[0], sums[1])) } else { 0 }
}

#[inline(always)]
fn encode_block<I: Instructions, T: Float16, const SUM: bool>(
    simd: I,
    values: &[T; BLOCK],
    mask: Option<&[u16; BLOCK]>,
    inverse: I::Floats,
    offset: u8,
    sums: &mut [I::Ints; 2],
    target: &mut [i8; BLOCK],
) {
    let mut codes = [simd.splat_int(0); 4];
    for (i, (values, codes)) in values.as_chunks().0.iter().zip(codes.as_chunks_mut().0).enumerate() {
        let mask = mask.map(|mask| &mask.as_chunks::<PAIR>().0[i]);
        let [a, b] = T::load_pair(simd, values, mask);
        *codes = [simd.round(simd.multiply(a, inverse)), simd.round(simd.multiply(b, inverse))];
        if SUM {
            *sums = [simd.add_int(sums[0], codes[0]), simd.add_int(sums[1], codes[1])];
        }
    }
    T::store_codes(simd, codes, offset, target);
}

#[cfg(test)]
mod tests {
    use int8_core::corpus::Random;
    use ndarray::ArrayView2;

    use super::*;
    use crate::kernel::Kernel;
    use crate::prologue::encode::{self, Keep, scratch_length};
    use crate::simd::{Dispatch, Vectorize, Vectorized};

    fn thresholds<T: Float16>() {
        for threshold in [1e-40, 1e-8, 0.3, 6.0, 6.01, 65_504.0, 65_505.0, 1e30, 3.4e38, f32::INFINITY] {
            let all: Vec<T> = (0..=u16::MAX).map(T::from_bits).collect();
            let mut flags = vec![0; all.len()];
            let x = Source::new(ArrayView2::from_shape((1, all.len()), &all).expect("a row"), "x")
                .expect("a row");
            flag_outliers::<T>(x, 0..1, threshold, &mut flags);
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
        typed: FloatSlice<'a>,
        outliers: &'a [usize],
        offset: u8,
    }

    impl<T: Float16> Dispatch for BothWays<'_, T> {
        type Output = [(u32, i32, Vec<i8>); 2];

        fn run<K: Vectorize>(self, tile: K) -> Self::Output {
            tile.vectorize(self)
        }
    }

    impl<T: Float16> Vectorized for BothWays<'_, T> {
        type Output = [(u32, i32, Vec<i8>); 2];

        #[inline(always)]
        fn call<I: Instructions>(self, simd: I) -> Self::Output {
            let Self { row, typed, outliers, offset } = self;
            let length = scratch_length(row.len());
            let mut columns = vec![u32::MAX; if outliers.is_empty() { 0 } else { length }];
            outliers.iter().for_each(|column| columns[*column] = 0);
            let keep = if outliers.is_empty() { Keep::All } else { Keep::Masked(&columns) };
            let (mut direct, mut widened, mut scratch) = (vec![99; length], vec![99; length], Vec::new());
            let mask = mask(row.len(), outliers);
            let (parameters, sum) = quantize::<I, T, true>(simd, row, &mask, offset, &mut direct);
            let direct = (parameters.scale.to_bits(), sum, direct);
            let blocks = encode::widen(simd, typed, &mut scratch);
            let range = encode::range(simd, blocks, keep, Encoding::Absmax);
            let parameters = Parameters::new(range, Encoding::Absmax);
            let sum = encode::encode(simd, blocks, row.len(), keep, parameters, offset, &mut widened);
            [direct, (parameters.scale.to_bits(), sum, widened)]
        }
    }

    fn both_ways<T: Float16>(typed: fn(&[T]) -> FloatSlice<'_>) {
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
        both_ways::<f16>(|row| FloatSlice::F16(row));
        both_ways::<bf16>(|row| FloatSlice::Bf16(row));
    }
}
