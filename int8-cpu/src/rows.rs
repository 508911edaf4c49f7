//! One row of floats to codes: range, constants, codes. The same functions quantise activations and weights.
//!
//! Written on plain slices in blocks of fixed size, for the compiler to vectorise with whatever instruction set the
//! kernel enables.

use half::{bf16, f16};
use int8_core::quantize::{MIN_SCALE, group_scale};
use int8_core::{Encoding, GROUP, RowStatistic};

use crate::convert::{self, Typed};
use crate::groups::GroupTerms;
use crate::tile::{Instructions, K_STEP, LANES, Vectorized};

/// Values handled at once: the codes of one cache line.
pub(crate) const BLOCK: usize = K_STEP;

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

    /// Of values whose largest magnitude is this, for absmax.
    pub(crate) fn up_to(magnitude: f32) -> Self {
        Self { magnitude: magnitude.to_bits(), ..Self::EMPTY }
    }

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
    #[inline(always)]
    pub(crate) fn new(range: Range, encoding: Encoding) -> Self {
        Self::with_scale(range, encoding, |scale| scale)
    }

    #[inline(always)]
    fn with_scale(range: Range, encoding: Encoding, rounded: impl Fn(f32) -> f32) -> Self {
        if !range.finite() {
            return Self { scale: f32::NAN, inverse: 0.0, zero_point: 0 };
        }
        let scale = match encoding {
            Encoding::Absmax => f32::from_bits(range.magnitude),
            // Halved before the subtraction, so that a range wider than f32 does not overflow.
            Encoding::Zeropoint => range.high * 0.5 - range.low * 0.5,
        };
        let scale = rounded(scale);
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

impl Constants {
    /// What values are multiplied with; nothing where all codes are 0.
    pub(crate) fn inverse(self) -> Option<f32> {
        (self.inverse != 0.0).then_some(self.inverse)
    }

    /// Those of a group: the scale is rounded up to bf16.
    pub(crate) fn of_group(range: Range, encoding: Encoding) -> Self {
        Self::with_scale(range, encoding, group_scale)
    }

    /// Absmax as bitsandbytes computes it on a CPU: `127/s` in PyTorch is `(1/s)·127`, rounded twice. A code differs from the
    /// reference's by one where `x·127/s` lies within that rounding of a half, once in some ten thousand.
    pub(crate) fn bitsandbytes(range: Range) -> Self {
        let constants = Self::new(range, Encoding::Absmax);
        if constants.inverse == 0.0 {
            return constants;
        }
        Self { inverse: (1.0 / constants.scale) * 127.0, ..constants }
    }
}

/// A row as f32 in blocks: the row itself, or its values widened into `scratch`, with zeros behind the last one.
///
/// `scratch` grows where it is used.
#[inline(always)]
pub(crate) fn widen<'a, I: Instructions>(
    simd: I,
    row: Typed<'a>,
    scratch: &'a mut Vec<f32>,
) -> &'a [[f32; BLOCK]] {
    let inner = row.len();
    if let Typed::F32(row) = row {
        let (blocks, rest) = row.as_chunks::<BLOCK>();
        if rest.is_empty() {
            return blocks;
        }
    }
    scratch.resize(scratch_length(inner), 0.0);
    let vectors = scratch.as_chunks_mut::<LANES>().0;
    match row {
        Typed::F32(row) => scratch[..inner].copy_from_slice(row),
        Typed::F16(row) => {
            let (whole, rest) = row.as_chunks::<LANES>();
            for (target, values) in vectors.iter_mut().zip(whole) {
                simd.store(simd.load_f16(values), target);
            }
            if !rest.is_empty() {
                let mut padded = [f16::ZERO; LANES];
                padded[..rest.len()].copy_from_slice(rest);
                simd.store(simd.load_f16(&padded), &mut vectors[whole.len()]);
            }
        }
        Typed::Bf16(row) => {
            let (whole, rest) = row.as_chunks::<LANES>();
            for (target, values) in vectors.iter_mut().zip(whole) {
                simd.store(simd.load_bf16(values), target);
            }
            if !rest.is_empty() {
                let mut padded = [bf16::ZERO; LANES];
                padded[..rest.len()].copy_from_slice(rest);
                simd.store(simd.load_bf16(&padded), &mut vectors[whole.len()]);
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
    /// Vector `index` of a row with those of its values that do not take part set to zero.
    #[inline(always)]
    fn vector<I: Instructions>(&self, simd: I, index: usize, values: &[f32; LANES]) -> I::Floats {
        let values = simd.load(values);
        match self {
            Self::All => values,
            Self::Below(threshold) => simd.below(values, simd.splat(*threshold)),
            Self::Masked(masks) => simd.masked(values, &masks.as_chunks::<LANES>().0[index]),
        }
    }
}

/// Vectors of a block: independent chains that hide the latency of a running maximum.
const VECTORS: usize = BLOCK / LANES;

/// The range of the values that take part. Absmax needs the magnitude alone.
#[inline(always)]
pub(crate) fn range<I: Instructions>(
    simd: I,
    blocks: &[[f32; BLOCK]],
    keep: Keep<'_>,
    encoding: Encoding,
) -> Range {
    let mut magnitudes = [simd.splat_int(0); VECTORS];
    let (mut low, mut high) = (simd.splat(0.0), simd.splat(0.0));
    for (index, block) in blocks.iter().enumerate() {
        let vectors = block.as_chunks::<LANES>().0;
        for (i, (magnitude, values)) in magnitudes.iter_mut().zip(vectors).enumerate() {
            let values = keep.vector(simd, index * VECTORS + i, values);
            *magnitude = simd.maximum_int(*magnitude, simd.magnitude(values));
            if encoding == Encoding::Zeropoint {
                // A NaN may leave any number here; the magnitude tells.
                low = simd.minimum(low, values);
                high = simd.maximum(high, values);
            }
        }
    }
    let [a, b, c, d] = magnitudes;
    let magnitudes = simd.maximum_int(simd.maximum_int(a, b), simd.maximum_int(c, d));
    let magnitude = simd.largest_int(magnitudes).cast_unsigned();
    match encoding {
        Encoding::Absmax => Range { magnitude, ..Range::EMPTY },
        Encoding::Zeropoint => Range { low: simd.smallest(low), high: simd.largest(high), magnitude },
    }
}

/// Writes the codes of a row, plus `offset`, in whole blocks, and returns the sum of the K codes (without the offset).
/// Values that do not take part, and those behind the last one, get the code of 0.
#[inline(always)]
pub(crate) fn encode<I: Instructions>(
    simd: I,
    blocks: &[[f32; BLOCK]],
    inner: usize,
    keep: Keep<'_>,
    constants: Constants,
    offset: u8,
    codes: &mut [i8],
) -> i32 {
    let padding = blocks.len() * BLOCK - inner;
    let codes = &mut codes[..blocks.len() * BLOCK];
    if constants.inverse == 0.0 {
        codes.fill(convert::code_byte(0, offset));
        return 0;
    }
    let (inverse, zero_point) = (simd.splat(constants.inverse), simd.splat_int(constants.zero_point));
    let mut sums = simd.splat_int(0);
    let vectors = blocks.as_flattened().as_chunks::<LANES>().0;
    for (index, (values, target)) in vectors.iter().zip(codes.as_chunks_mut::<LANES>().0).enumerate() {
        let values = keep.vector(simd, index, values);
        let steps = simd.round(simd.multiply(values, inverse));
        let code = simd.clamp_code(simd.add_int(steps, zero_point));
        sums = simd.add_int(sums, code);
        simd.store_codes(code, offset, target);
    }
    simd.sum_int(sums) - convert::wrap(convert::length(padding)) * constants.zero_point
}

/// How the groups of a row are quantised.
pub(crate) struct Groups<'a> {
    /// Of the whole row, or nothing: each group has its own.
    pub(crate) constants: Option<Constants>,
    /// Which values count for the range of their group.
    pub(crate) counted: Keep<'a>,
    /// Which get a code of their own; the others get that of 0.
    pub(crate) encoded: Keep<'a>,
    pub(crate) encoding: Encoding,
    pub(crate) offset: u8,
    /// Whether to compute [`GroupTerms::rest`].
    pub(crate) rests: bool,
}

/// Vectors of a group.
const GROUP_VECTORS: usize = GROUP / LANES;

impl Groups<'_> {
    /// Writes the codes of a row, plus the offset, in whole blocks, and the terms of its groups. Values behind the last one
    /// are zeros.
    #[inline(always)]
    pub(crate) fn encode<I: Instructions>(
        &self,
        simd: I,
        blocks: &[[f32; BLOCK]],
        codes: &mut [i8],
        terms: &mut [GroupTerms],
    ) {
        let values = blocks.as_flattened().as_chunks::<GROUP>().0;
        let codes = codes.as_chunks_mut::<GROUP>().0;
        for (group, ((values, codes), terms)) in values.iter().zip(codes).zip(terms).enumerate() {
            let constants = match self.constants {
                Some(constants) => constants,
                None => Constants::of_group(self.range(simd, group, values), self.encoding),
            };
            let rest = self.group(simd, group, values, constants, codes);
            *terms = GroupTerms {
                step: constants.scale / 127.0,
                zero: convert::accumulator(constants.zero_point + i32::from(self.offset)),
                rest: convert::accumulator(rest),
            };
        }
    }

    #[inline(always)]
    fn range<I: Instructions>(&self, simd: I, group: usize, values: &[f32; GROUP]) -> Range {
        let zero = simd.splat(0.0);
        let (mut magnitude, mut low, mut high) = (simd.splat_int(0), zero, zero);
        for (i, values) in values.as_chunks::<LANES>().0.iter().enumerate() {
            let values = self.counted.vector(simd, group * GROUP_VECTORS + i, values);
            magnitude = simd.maximum_int(magnitude, simd.magnitude(values));
            low = simd.minimum(low, values);
            high = simd.maximum(high, values);
        }
        let magnitude = simd.largest_int(magnitude).cast_unsigned();
        match self.encoding {
            Encoding::Absmax => Range { low: 0.0, high: 0.0, magnitude },
            // A NaN may leave any number here; the magnitude tells.
            Encoding::Zeropoint => Range { low: simd.smallest(low), high: simd.largest(high), magnitude },
        }
    }

    /// Writes the codes of one group and returns `Σ(q − z)`, if it is asked for.
    #[inline(always)]
    fn group<I: Instructions>(
        &self,
        simd: I,
        group: usize,
        values: &[f32; GROUP],
        constants: Constants,
        codes: &mut [i8; GROUP],
    ) -> i32 {
        if constants.inverse == 0.0 {
            codes.fill(convert::code_byte(0, self.offset));
            return 0;
        }
        let (inverse, zero_point) = (simd.splat(constants.inverse), simd.splat_int(constants.zero_point));
        let mut sums = simd.splat_int(0);
        let vectors = values.as_chunks::<LANES>().0.iter().zip(codes.as_chunks_mut::<LANES>().0);
        for (i, (values, target)) in vectors.enumerate() {
            let values = self.encoded.vector(simd, group * GROUP_VECTORS + i, values);
            let steps = simd.round(simd.multiply(values, inverse));
            let code = simd.clamp_code(simd.add_int(steps, zero_point));
            sums = simd.add_int(sums, code);
            simd.store_codes(code, self.offset, target);
        }
        if !self.rests {
            return 0;
        }
        simd.sum_int(sums) - convert::wrap(convert::length(GROUP)) * constants.zero_point
    }
}

/// Sets the flag of every column in which this row has an outlier.
#[inline(always)]
pub(crate) fn flag_outliers<I: Instructions>(simd: I, row: &[f32], threshold: f32, flags: &mut [u8]) {
    let limit = simd.splat(threshold);
    let (vectors, rest) = row.as_chunks::<LANES>();
    for (values, flags) in vectors.iter().zip(flags.chunks_exact_mut(LANES)) {
        if simd.any_reaches(simd.load(values), limit) {
            for (flag, value) in flags.iter_mut().zip(values) {
                *flag |= u8::from(value.abs() >= threshold);
            }
        }
    }
    for (flag, value) in flags[row.len() - rest.len()..].iter_mut().zip(rest) {
        *flag |= u8::from(value.abs() >= threshold);
    }
}

/// Appends column and value of every outlier of the row. The zeros behind the last value never are: thresholds are
/// positive.
#[inline(always)]
pub(crate) fn list_outliers<I: Instructions>(
    simd: I,
    blocks: &[[f32; BLOCK]],
    threshold: f32,
    found: &mut Vec<(u32, f32)>,
) {
    let limit = simd.splat(threshold);
    for (index, values) in blocks.as_flattened().as_chunks::<LANES>().0.iter().enumerate() {
        if simd.any_reaches(simd.load(values), limit) {
            for (i, value) in values.iter().enumerate() {
                if value.abs() >= threshold {
                    found.push((convert::index(index * LANES + i), *value));
                }
            }
        }
    }
}

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

/// Quantises one row, every value counting, compiled for the kernel's instruction set.
pub(crate) struct EncodeRow<'a> {
    pub(crate) row: Typed<'a>,
    pub(crate) scratch: &'a mut Vec<f32>,
    pub(crate) constants: Option<Constants>,
    pub(crate) encoding: Encoding,
    /// Whole blocks; behind the last value zero codes are left.
    pub(crate) codes: &'a mut [i8],
}

impl Vectorized for EncodeRow<'_> {
    /// Constants and the sum of the codes.
    type Output = (Constants, i32);

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) -> Self::Output {
        let inner = self.row.len();
        let blocks = widen(simd, self.row, self.scratch);
        let constants = self
            .constants
            .unwrap_or_else(|| Constants::new(range(simd, blocks, Keep::All, self.encoding), self.encoding));
        let sum = encode(simd, blocks, inner, Keep::All, constants, 0, self.codes);
        self.codes[inner..].fill(0);
        (constants, sum)
    }
}

/// Quantises one row in groups, every value counting, compiled for the kernel's instruction set.
pub(crate) struct EncodeGroups<'a> {
    pub(crate) row: Typed<'a>,
    pub(crate) scratch: &'a mut Vec<f32>,
    pub(crate) encoding: Encoding,
    /// Whole blocks; behind the last value zero codes are left.
    pub(crate) codes: &'a mut [i8],
    /// Scale and zero point of each group.
    pub(crate) constants: &'a mut [(f32, i32)],
}

impl Vectorized for EncodeGroups<'_> {
    /// The sum of the codes.
    type Output = i32;

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) -> i32 {
        let inner = self.row.len();
        let blocks = widen(simd, self.row, self.scratch);
        let groups = Groups {
            constants: None,
            counted: Keep::All,
            encoded: Keep::All,
            encoding: self.encoding,
            offset: 0,
            rests: false,
        };
        let values = blocks.as_flattened().as_chunks::<GROUP>().0;
        let codes = self.codes.as_chunks_mut::<GROUP>().0.iter_mut();
        for (group, (values, codes)) in values.iter().zip(codes).enumerate() {
            let constants = Constants::of_group(groups.range(simd, group, values), self.encoding);
            groups.group(simd, group, values, constants, codes);
            if let Some(to) = self.constants.get_mut(group) {
                *to = (constants.scale, constants.zero_point);
            }
        }
        self.codes[inner..].fill(0);
        self.codes.iter().map(|code| i32::from(*code)).sum()
    }
}

/// The range of one row, every value counting.
pub(crate) struct RowRange<'a> {
    pub(crate) row: Typed<'a>,
    pub(crate) scratch: &'a mut Vec<f32>,
    pub(crate) encoding: Encoding,
}

impl Vectorized for RowRange<'_> {
    type Output = Range;

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) -> Range {
        range(simd, widen(simd, self.row, self.scratch), Keep::All, self.encoding)
    }
}

#[cfg(test)]
mod tests {
    use int8_core::corpus::Random;
    use ndarray::aview1;

    use super::*;
    use crate::kernel::{Dispatch, Kernel};
    use crate::tile::TileKernel;

    struct Median<'a> {
        row: &'a [f32],
        scratch: &'a mut Vec<u32>,
    }

    impl Dispatch for Median<'_> {
        type Output = f32;

        fn run<K: TileKernel>(self, tile: K) -> f32 {
            tile.vectorize(self)
        }
    }

    impl Vectorized for Median<'_> {
        type Output = f32;

        #[inline(always)]
        fn call<I: Instructions>(self, simd: I) -> f32 {
            let mut padded = Vec::new();
            let blocks = widen(simd, Typed::F32(self.row), &mut padded);
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
