//! One row of floats to codes: range, constants, codes. The same functions quantise activations and weights.
//!
//! Written on plain slices in blocks of fixed size, for the compiler to vectorise with whatever instruction set the
//! kernel enables.

use int8_core::quantize::MIN_SCALE;
use int8_core::{Encoding, RowStatistic};

use crate::convert::{self, Typed};
use crate::tile::{Instructions, K_STEP, Vectorized};

/// Values handled at once: the codes of one cache line.
pub(crate) const BLOCK: usize = K_STEP;

/// Lanes of a running reduction: two zmm or four ymm registers, enough to hide the latency of the instruction.
const LANES: usize = 32;

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

/// A row as f32 in blocks: the row itself, or its values widened into `scratch`, with zeros behind the last one.
///
/// `scratch` must hold [`scratch_length`] elements.
#[inline(always)]
pub(crate) fn widen<'a, I: Instructions>(
    instructions: I,
    row: Typed<'a>,
    scratch: &'a mut [f32],
) -> &'a [[f32; BLOCK]] {
    let inner = row.len();
    let scratch = &mut scratch[..scratch_length(inner)];
    match row {
        Typed::F32(row) => {
            let (blocks, rest) = row.as_chunks::<BLOCK>();
            if rest.is_empty() {
                return blocks;
            }
            scratch[..inner].copy_from_slice(row);
        }
        Typed::F16(row) => instructions.widen(row, &mut scratch[..inner]),
        Typed::Bf16(row) => {
            for (wide, value) in scratch.iter_mut().zip(row) {
                *wide = convert::bf16_to_f32(*value);
            }
        }
    }
    scratch[inner..].fill(0.0);
    scratch.as_chunks::<BLOCK>().0
}

/// Elements of scratch for rows of K values.
pub(crate) fn scratch_length(inner: usize) -> usize {
    inner.div_ceil(BLOCK) * BLOCK
}

// No closures below: a closure is a function of its own, and one that is not inlined loses the instruction set.

impl Keep<'_> {
    /// A block with those of its values that do not take part set to zero.
    #[inline(always)]
    fn block(&self, index: usize, block: &[f32; BLOCK]) -> [f32; BLOCK] {
        let mut kept = *block;
        match self {
            Self::All => {}
            Self::Below(threshold) => {
                for value in &mut kept {
                    *value = if value.abs() >= *threshold { 0.0 } else { *value };
                }
            }
            Self::Masked(masks) => {
                for (value, mask) in kept.iter_mut().zip(&masks[index * BLOCK..(index + 1) * BLOCK]) {
                    *value = f32::from_bits(value.to_bits() & mask);
                }
            }
        }
        kept
    }
}

/// The magnitude of a value as ordered bits; that of a NaN is above that of infinity.
#[inline(always)]
fn magnitude(value: f32) -> u32 {
    value.to_bits() & 0x7FFF_FFFF
}

/// The range of the values that take part. Absmax needs the magnitude alone.
#[inline(always)]
pub(crate) fn range(blocks: &[[f32; BLOCK]], keep: Keep<'_>, encoding: Encoding) -> Range {
    // One running range for each of LANES values, folded at the end: no reduction inside the loop.
    let mut magnitudes = [0_u32; LANES];
    let (mut low, mut high) = ([0.0_f32; LANES], [0.0_f32; LANES]);
    for (index, block) in blocks.iter().enumerate() {
        for part in keep.block(index, block).as_chunks::<LANES>().0 {
            for (largest, value) in magnitudes.iter_mut().zip(part) {
                *largest = (*largest).max(magnitude(*value));
            }
            if encoding == Encoding::Zeropoint {
                for (low, value) in low.iter_mut().zip(part) {
                    *low = if *value < *low { *value } else { *low };
                }
                for (high, value) in high.iter_mut().zip(part) {
                    *high = if *value > *high { *value } else { *high };
                }
            }
        }
    }
    Range {
        low: low.into_iter().fold(0.0, |low, value| if value < low { value } else { low }),
        high: high.into_iter().fold(0.0, |high, value| if value > high { value } else { high }),
        magnitude: magnitudes.into_iter().fold(0, u32::max),
    }
}

/// Writes the codes of a row, plus `offset`, in whole blocks, and returns the sum of the K codes (without the offset).
/// Values that do not take part, and those behind the last one, get the code of 0.
#[inline(always)]
pub(crate) fn encode(
    blocks: &[[f32; BLOCK]],
    inner: usize,
    keep: Keep<'_>,
    constants: Constants,
    offset: u8,
    codes: &mut [i8],
) -> i32 {
    let (codes, _) = codes.as_chunks_mut::<BLOCK>();
    if constants.inverse == 0.0 {
        codes[..blocks.len()].fill([convert::code_byte(0, offset); BLOCK]);
        return 0;
    }
    let mut sums = [0_i32; LANES];
    for ((index, block), target) in blocks.iter().enumerate().zip(codes) {
        let kept = keep.block(index, block);
        let mut clamped = [0_i32; BLOCK];
        for (code, value) in clamped.iter_mut().zip(kept) {
            *code = (convert::round(value * constants.inverse) + constants.zero_point).clamp(-127, 127);
        }
        for part in clamped.as_chunks::<LANES>().0 {
            for (sum, code) in sums.iter_mut().zip(part) {
                *sum = sum.wrapping_add(*code);
            }
        }
        for (target, code) in target.iter_mut().zip(clamped) {
            *target = convert::code_byte(code, offset);
        }
    }
    let padding = convert::wrap(convert::length(blocks.len() * BLOCK - inner));
    sums.into_iter().sum::<i32>() - padding * constants.zero_point
}

/// Whether any value of the block reaches the threshold; the threshold is positive, so magnitudes order like bits.
#[inline(always)]
fn reaches(block: &[f32; BLOCK], threshold: f32) -> bool {
    block.iter().fold(false, |any, value| any | (value.abs() >= threshold))
}

/// Sets the flag of every column in which this row has an outlier.
#[inline(always)]
pub(crate) fn flag_outliers(blocks: &[[f32; BLOCK]], threshold: f32, flags: &mut [u8]) {
    for (block, flags) in blocks.iter().zip(flags.chunks_mut(BLOCK)) {
        if reaches(block, threshold) {
            for (flag, value) in flags.iter_mut().zip(block) {
                *flag |= u8::from(value.abs() >= threshold);
            }
        }
    }
}

/// Appends column and value of every outlier of the row. The zeros behind the last value never are: thresholds are
/// positive.
#[inline(always)]
pub(crate) fn list_outliers(blocks: &[[f32; BLOCK]], threshold: f32, found: &mut Vec<(u32, f32)>) {
    for (index, block) in blocks.iter().enumerate() {
        if reaches(block, threshold) {
            for (i, value) in block.iter().enumerate().filter(|(_, value)| value.abs() >= threshold) {
                found.push((convert::index(index * BLOCK + i), *value));
            }
        }
    }
}

/// `tau · statistic(row)`, or +∞ where the statistic is 0 or not finite: bit for bit the reference's threshold.
#[inline(always)]
pub(crate) fn relative_threshold(
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
        _ => lower_median(values, scratch),
    };
    if level > 0.0 && level.is_finite() { tau * level } else { f32::INFINITY }
}

/// The lower median of the non-zero magnitudes; 0 if there are none, NaN if there is a NaN.
#[inline(always)]
fn lower_median(values: &[f32], magnitudes: &mut Vec<u32>) -> f32 {
    magnitudes.clear();
    // Magnitudes of floats order like their bits.
    magnitudes.extend(values.iter().map(|value| magnitude(*value)).filter(|bits| *bits != 0));
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
    /// Whole blocks; behind the last value zero codes are left.
    pub(crate) codes: &'a mut [i8],
}

impl Vectorized for EncodeRow<'_> {
    /// Constants and the sum of the codes.
    type Output = (Constants, i32);

    #[inline(always)]
    fn call<I: Instructions>(self, instructions: I) -> Self::Output {
        let inner = self.row.len();
        let blocks = widen(instructions, self.row, self.scratch);
        let constants = self
            .constants
            .unwrap_or_else(|| Constants::new(range(blocks, Keep::All, self.encoding), self.encoding));
        let sum = encode(blocks, inner, Keep::All, constants, 0, self.codes);
        self.codes[inner..].fill(0);
        (constants, sum)
    }
}

/// The range of one row, every value counting.
pub(crate) struct RowRange<'a> {
    pub(crate) row: Typed<'a>,
    pub(crate) scratch: &'a mut [f32],
    pub(crate) encoding: Encoding,
}

impl Vectorized for RowRange<'_> {
    type Output = Range;

    #[inline(always)]
    fn call<I: Instructions>(self, instructions: I) -> Range {
        range(widen(instructions, self.row, self.scratch), Keep::All, self.encoding)
    }
}
