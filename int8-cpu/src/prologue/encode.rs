//! One row of floats to codes: range, parameters, codes. The same functions quantise activations and weights.
//!
//! Written on plain slices in blocks of fixed size, for the compiler to vectorise with whatever instruction set the
//! kernel enables.

use half::{bf16, f16};
use int8_core::{Encoding, FloatSlice, GROUP};

use super::parameters::{Parameters, Range};
use super::terms::GroupTerms;
use crate::convert;
use crate::layout::K_STEP;
use crate::simd::{Instructions, LANES, Vectorized};

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

/// A row as f32 in blocks: the row itself, or its values widened into `scratch`, with zeros behind the last one.
///
/// `scratch` grows where it is used.
#[inline(always)]
pub(crate) fn widen<'a, I: Instructions>(
    simd: I,
    row: FloatSlice<'a>,
    scratch: &'a mut Vec<f32>,
) -> &'a [[f32; BLOCK]] {
    let inner = row.len();
    if let FloatSlice::F32(row) = row {
        let (blocks, rest) = row.as_chunks::<BLOCK>();
        if rest.is_empty() {
            return blocks;
        }
    }
    scratch.resize(scratch_length(inner), 0.0);
    let vectors = scratch.as_chunks_mut::<LANES>().0;
    match row {
        FloatSlice::F32(row) => scratch[..inner].copy_from_slice(row),
        FloatSlice::F16(row) => {
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
        FloatSlice::Bf16(row) => {
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
    parameters: Parameters,
    offset: u8,
    codes: &mut [i8],
) -> i32 {
    let padding = blocks.len() * BLOCK - inner;
    let codes = &mut codes[..blocks.len() * BLOCK];
    if parameters.inverse == 0.0 {
        codes.fill(convert::code_byte(0, offset));
        return 0;
    }
    let (inverse, zero_point) = (simd.splat(parameters.inverse), simd.splat_int(parameters.zero_point));
    let mut sums = simd.splat_int(0);
    let vectors = blocks.as_flattened().as_chunks::<LANES>().0;
    for (index, (values, target)) in vectors.iter().zip(codes.as_chunks_mut::<LANES>().0).enumerate() {
        let values = keep.vector(simd, index, values);
        let steps = simd.round(simd.multiply(values, inverse));
        let code = simd.clamp_code(simd.add_int(steps, zero_point));
        sums = simd.add_int(sums, code);
        simd.store_codes(code, offset, target);
    }
    simd.sum_int(sums) - convert::wrap(convert::length(padding)) * parameters.zero_point
}

/// As [`encode`], of values no larger than the scale, without the sum; the codes of larger values, and of NaN, are any.
#[inline(always)]
pub(crate) fn encode_in_range<I: Instructions>(
    simd: I,
    blocks: &[[f32; BLOCK]],
    parameters: Parameters,
    offset: u8,
    codes: &mut [i8],
) {
    let Some(inverse) = parameters.inverse() else {
        codes.fill(convert::code_byte(0, offset));
        return;
    };
    let inverse = simd.splat(inverse);
    for (block, target) in blocks.iter().zip(codes.as_chunks_mut::<BLOCK>().0) {
        let mut codes = [simd.splat_int(0); VECTORS];
        for (code, values) in codes.iter_mut().zip(block.as_chunks::<LANES>().0) {
            *code = simd.round(simd.multiply(simd.load(values), inverse));
        }
        simd.store_code_block(codes, offset, target);
    }
}

/// How the groups of a row are quantised.
pub(crate) struct Groups<'a> {
    /// Of the whole row, or nothing: each group has its own.
    pub(crate) parameters: Option<Parameters>,
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
            let parameters = match self.parameters {
                Some(parameters) => parameters,
                None => Parameters::of_group(self.range(simd, group, values), self.encoding),
            };
            let rest = self.group(simd, group, values, parameters, codes);
            *terms = GroupTerms {
                step: parameters.scale / 127.0,
                zero: convert::accumulator(parameters.zero_point + i32::from(self.offset)),
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

    /// Writes the codes of one group and returns `Σ(q − z)`, if it is needed.
    #[inline(always)]
    fn group<I: Instructions>(
        &self,
        simd: I,
        group: usize,
        values: &[f32; GROUP],
        parameters: Parameters,
        codes: &mut [i8; GROUP],
    ) -> i32 {
        if parameters.inverse == 0.0 {
            codes.fill(convert::code_byte(0, self.offset));
            return 0;
        }
        let (inverse, zero_point) = (simd.splat(parameters.inverse), simd.splat_int(parameters.zero_point));
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
        simd.sum_int(sums) - convert::wrap(convert::length(GROUP)) * parameters.zero_point
    }
}

/// Quantises one row, every value counting, compiled for the kernel's instruction set.
pub(crate) struct EncodeRow<'a> {
    pub(crate) row: FloatSlice<'a>,
    pub(crate) scratch: &'a mut Vec<f32>,
    pub(crate) parameters: Option<Parameters>,
    pub(crate) encoding: Encoding,
    /// Whole blocks; behind the last value zero codes are left.
    pub(crate) codes: &'a mut [i8],
}

impl Vectorized for EncodeRow<'_> {
    /// Parameters and the sum of the codes.
    type Output = (Parameters, i32);

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) -> Self::Output {
        let inner = self.row.len();
        let blocks = widen(simd, self.row, self.scratch);
        let parameters = self
            .parameters
            .unwrap_or_else(|| Parameters::new(range(simd, blocks, Keep::All, self.encoding), self.encoding));
        let sum = encode(simd, blocks, inner, Keep::All, parameters, 0, self.codes);
        self.codes[inner..].fill(0);
        (parameters, sum)
    }
}

/// Quantises one row in groups, every value counting, compiled for the kernel's instruction set.
pub(crate) struct EncodeGroups<'a> {
    pub(crate) row: FloatSlice<'a>,
    pub(crate) scratch: &'a mut Vec<f32>,
    pub(crate) encoding: Encoding,
    /// Whole blocks; behind the last value zero codes are left.
    pub(crate) codes: &'a mut [i8],
    /// Scale and zero point of each group.
    pub(crate) parameters: &'a mut [(f32, i32)],
}

impl Vectorized for EncodeGroups<'_> {
    /// The sum of the codes.
    type Output = i32;

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) -> i32 {
        let inner = self.row.len();
        let blocks = widen(simd, self.row, self.scratch);
        let groups = Groups {
            parameters: None,
            counted: Keep::All,
            encoded: Keep::All,
            encoding: self.encoding,
            offset: 0,
            rests: false,
        };
        let values = blocks.as_flattened().as_chunks::<GROUP>().0;
        let codes = self.codes.as_chunks_mut::<GROUP>().0.iter_mut();
        for (group, (values, codes)) in values.iter().zip(codes).enumerate() {
            let parameters = Parameters::of_group(groups.range(simd, group, values), self.encoding);
            groups.group(simd, group, values, parameters, codes);
            if let Some(to) = self.parameters.get_mut(group) {
                *to = (parameters.scale, parameters.zero_point);
            }
        }
        self.codes[inner..].fill(0);
        self.codes.iter().map(|code| i32::from(*code)).sum()
    }
}

/// The range of one row, every value counting.
pub(crate) struct RowRange<'a> {
    pub(crate) row: FloatSlice<'a>,
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
