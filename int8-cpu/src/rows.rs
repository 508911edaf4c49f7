//! One row of floats to codes: range, constants, codes. The same functions quantise activations and weights.
//!
//! Written on plain slices in blocks of fixed size, for the compiler to vectorise with whatever instruction set the
//! kernel enables.

use half::slice::HalfFloatSliceExt;
use int8_core::quantize::MIN_SCALE;
use int8_core::{Encoding, RowStatistic};

use crate::convert::{self, Typed};
use crate::tile::Vectorized;

/// Values handled at once: four zmm or eight ymm registers of f32, enough to hide the latency of a reduction.
const BLOCK: usize = 64;

/// Which values of a row take part.
#[derive(Clone, Copy)]
pub(crate) enum Keep<'a> {
    /// All.
    All,
    /// Those with `!(|x| ≥ threshold)`.
    Below(f32),
    /// Those whose column's mask is all ones (the others' is zero).
    Masked(&'a [u32]),
}

/// Smallest and largest value of a set, 0 included, and the bits of the largest magnitude, NaN above infinity.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    low: f32,
    high: f32,
    magnitude: u32,
}

impl Range {
    pub(crate) const EMPTY: Self = Self { low: 0.0, high: 0.0, magnitude: 0 };

    pub(crate) fn union(self, other: Self) -> Self {
        Self {
            low: if other.low < self.low { other.low } else { self.low },
            high: if other.high > self.high { other.high } else { self.high },
            magnitude: self.magnitude.max(other.magnitude),
        }
    }

    fn finite(self) -> bool {
        self.magnitude < f32::INFINITY.to_bits()
    }
}

/// What maps the values of one row to codes: bit for bit the reference's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Constants {
    pub(crate) scale: f32,
    inverse: f32,
    pub(crate) zero_point: i32,
}

impl Constants {
    pub(crate) fn new(range: Range, encoding: Encoding) -> Self {
        if !range.finite() {
            return Self { scale: f32::NAN, inverse: 0.0, zero_point: 0 };
        }
        let scale = match encoding {
            Encoding::Absmax => f32::from_bits(range.magnitude),
            // Halved before the subtraction, so that a range wider than f32 does not overflow.
            Encoding::Zeropoint => range.high * 0.5 - range.low * 0.5,
        };
        if scale < MIN_SCALE {
            return Self { scale, inverse: 0.0, zero_point: 0 };
        }
        let inverse = 127.0 / scale;
        let zero_point = match encoding {
            Encoding::Absmax => 0,
            Encoding::Zeropoint => -convert::round(range.low * inverse) - 127,
        };
        Self { scale, inverse, zero_point }
    }
}

/// A row as f32: the row itself, or its values widened into `scratch`.
#[inline(always)]
pub(crate) fn widen<'a>(row: Typed<'a>, scratch: &'a mut [f32]) -> &'a [f32] {
    match row {
        Typed::F32(row) => row,
        Typed::F16(row) => {
            let scratch = &mut scratch[..row.len()];
            row.convert_to_f32_slice(scratch);
            scratch
        }
        Typed::Bf16(row) => {
            let scratch = &mut scratch[..row.len()];
            for (wide, value) in scratch.iter_mut().zip(row) {
                *wide = convert::bf16_to_f32(*value);
            }
            scratch
        }
    }
}

/// Applies `visit` to blocks of values with those that do not take part set to zero; the last one may be short.
#[inline(always)]
fn for_each_block(values: &[f32], keep: Keep<'_>, mut visit: impl FnMut(usize, &[f32])) {
    match keep {
        Keep::All => {
            for (index, block) in values.chunks(BLOCK).enumerate() {
                visit(index * BLOCK, block);
            }
        }
        Keep::Below(threshold) => {
            let mut kept = [0.0_f32; BLOCK];
            for (index, block) in values.chunks(BLOCK).enumerate() {
                for (kept, value) in kept.iter_mut().zip(block) {
                    *kept = if value.abs() >= threshold { 0.0 } else { *value };
                }
                visit(index * BLOCK, &kept[..block.len()]);
            }
        }
        Keep::Masked(mask) => {
            let mut kept = [0.0_f32; BLOCK];
            for (index, (block, mask)) in values.chunks(BLOCK).zip(mask.chunks(BLOCK)).enumerate() {
                for ((kept, value), mask) in kept.iter_mut().zip(block).zip(mask) {
                    *kept = f32::from_bits(value.to_bits() & mask);
                }
                visit(index * BLOCK, &kept[..block.len()]);
            }
        }
    }
}

/// The range of the values that take part.
#[inline(always)]
pub(crate) fn range(values: &[f32], keep: Keep<'_>) -> Range {
    // One running range for each lane of a block, folded at the end: no reduction inside the loop.
    let (mut low, mut high, mut magnitude) = ([0.0_f32; BLOCK], [0.0_f32; BLOCK], [0_u32; BLOCK]);
    for_each_block(values, keep, |_, block| {
        let lanes = low.iter_mut().zip(&mut high).zip(&mut magnitude);
        for (((low, high), magnitude), value) in lanes.zip(block) {
            *low = if *value < *low { *value } else { *low };
            *high = if *value > *high { *value } else { *high };
            *magnitude = (*magnitude).max(value.to_bits() & 0x7FFF_FFFF);
        }
    });
    let lanes = low.into_iter().zip(high).zip(magnitude);
    lanes.fold(Range::EMPTY, |range, ((low, high), magnitude)| range.union(Range { low, high, magnitude }))
}

/// Writes the codes of a row, plus `offset`, and returns the sum of the codes (without the offset). Values that do not
/// take part get the code of 0.
#[inline(always)]
pub(crate) fn encode(
    values: &[f32],
    keep: Keep<'_>,
    constants: Constants,
    offset: u8,
    codes: &mut [i8],
) -> i32 {
    if constants.inverse == 0.0 {
        codes[..values.len()].fill(convert::code_byte(0, offset));
        return 0;
    }
    let mut sums = [0_i32; BLOCK];
    for_each_block(values, keep, |at, block| {
        let codes = &mut codes[at..at + block.len()];
        for ((code, sum), value) in codes.iter_mut().zip(&mut sums).zip(block) {
            let steps = convert::round(*value * constants.inverse) + constants.zero_point;
            let clamped = steps.clamp(-127, 127);
            *sum += clamped;
            *code = convert::code_byte(clamped, offset);
        }
    });
    sums.into_iter().sum()
}

/// Sets the flag of every column in which this row has an outlier.
#[inline(always)]
pub(crate) fn flag_outliers(values: &[f32], threshold: f32, flags: &mut [u8]) {
    for (block, flags) in values.chunks(BLOCK).zip(flags.chunks_mut(BLOCK)) {
        let mut largest = [0_u8; BLOCK];
        for (hit, value) in largest.iter_mut().zip(block) {
            *hit = u8::from(value.abs() >= threshold);
        }
        if largest.iter().fold(0, |any, hit| any | hit) != 0 {
            for (flag, hit) in flags.iter_mut().zip(largest) {
                *flag |= hit;
            }
        }
    }
}

/// Appends column and value of every outlier of the row.
#[inline(always)]
pub(crate) fn list_outliers(values: &[f32], threshold: f32, found: &mut Vec<(u32, f32)>) {
    for (index, block) in values.chunks(BLOCK).enumerate() {
        let any = block.iter().fold(false, |any, value| any | (value.abs() >= threshold));
        if any {
            for (i, value) in block.iter().enumerate().filter(|(_, value)| value.abs() >= threshold) {
                found.push((convert::index(index * BLOCK + i), *value));
            }
        }
    }
}

/// `tau · statistic(row)`, or +∞ where the statistic is 0 or not finite: bit for bit the reference's threshold.
#[inline(always)]
pub(crate) fn relative_threshold(
    values: &[f32],
    tau: f32,
    statistic: RowStatistic,
    scratch: &mut Vec<u32>,
) -> f32 {
    let level = match statistic {
        RowStatistic::MeanAbs => {
            // In order, as the reference sums: another order could round differently.
            let sum: f64 = values.iter().map(|value| f64::from(value.abs())).sum();
            convert::f64_to_f32(sum / convert::count(values.len()))
        }
        _ => lower_median(values, scratch),
    };
    if level > 0.0 && level.is_finite() { tau * level } else { f32::INFINITY }
}

/// The lower median of the non-zero magnitudes; 0 if there are none, NaN if there is a NaN.
#[inline(always)]
fn lower_median(values: &[f32], magnitudes: &mut Vec<u32>) -> f32 {
    magnitudes.clear();
    // Magnitudes of floats order like their bits.
    magnitudes.extend(values.iter().map(|value| value.to_bits() & 0x7FFF_FFFF).filter(|bits| *bits != 0));
    if magnitudes.is_empty() {
        return 0.0;
    }
    if magnitudes.iter().fold(0, |largest, bits| largest.max(*bits)) > f32::INFINITY.to_bits() {
        return f32::NAN;
    }
    let middle = (magnitudes.len() - 1) / 2;
    f32::from_bits(*magnitudes.select_nth_unstable(middle).1)
}

/// Quantises one row, every value counting, compiled for the kernel's instruction set.
pub(crate) struct EncodeRow<'a> {
    pub(crate) row: Typed<'a>,
    pub(crate) scratch: &'a mut [f32],
    pub(crate) constants: Option<Constants>,
    pub(crate) encoding: Encoding,
    pub(crate) codes: &'a mut [i8],
}

impl Vectorized for EncodeRow<'_> {
    /// Constants and the sum of the codes.
    type Output = (Constants, i32);

    #[inline(always)]
    fn call<const FMA: bool>(self) -> Self::Output {
        let values = widen(self.row, self.scratch);
        let constants =
            self.constants.unwrap_or_else(|| Constants::new(range(values, Keep::All), self.encoding));
        (constants, encode(values, Keep::All, constants, 0, self.codes))
    }
}

/// The range of one row, every value counting.
pub(crate) struct RowRange<'a> {
    pub(crate) row: Typed<'a>,
    pub(crate) scratch: &'a mut [f32],
}

impl Vectorized for RowRange<'_> {
    type Output = Range;

    #[inline(always)]
    fn call<const FMA: bool>(self) -> Range {
        range(widen(self.row, self.scratch), Keep::All)
    }
}
