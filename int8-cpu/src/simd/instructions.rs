//! Sixteen lanes of f32 or i32: the few operations from which quantisation and epilogue are written once for every
//! instruction set. (Left to the compiler, loops of constant length are unrolled first and vectorised badly afterwards.)

use half::{bf16, f16};
use int8_core::Element;

use crate::buffer::Plain;
use crate::convert;
use crate::tokens::Portable;

/// Lanes of a vector: one zmm register, two ymm registers.
pub(crate) const LANES: usize = 16;

/// Sixteen-lane arithmetic. Implemented by capability tokens; every method is inlined into a function that has the
/// instructions enabled.
pub(crate) trait Instructions: Copy {
    /// Sixteen f32.
    type Floats: Copy;
    /// Sixteen i32.
    type Ints: Copy;
    /// Vector registers.
    const REGISTERS: usize = 16;

    fn splat(self, value: f32) -> Self::Floats;
    fn load(self, from: &[f32; LANES]) -> Self::Floats;
    fn store(self, value: Self::Floats, to: &mut [f32; LANES]);
    /// Exact.
    fn load_f16(self, from: &[f16; LANES]) -> Self::Floats;
    /// Half to even.
    fn store_f16(self, value: Self::Floats, to: &mut [f16; LANES]);
    /// Exact.
    fn load_i8(self, from: &[i8; LANES]) -> Self::Floats;
    /// Exact.
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::Floats;
    /// Half to even.
    fn store_bf16(self, value: Self::Floats, to: &mut [bf16; LANES]);
    /// The same of two vectors, where that is less work.
    #[inline(always)]
    fn store_bf16_pair(self, values: [Self::Floats; 2], to: &mut [bf16; 2 * LANES]) {
        for (value, to) in values.into_iter().zip(to.as_chunks_mut().0) {
            self.store_bf16(value, to);
        }
    }
    /// `to[2n + i] = rows[i][n]`.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "kernels without tiles of bf16"))]
    #[inline(always)]
    fn interleave_bf16(self, rows: [&[bf16; 2 * LANES]; 2], to: &mut [bf16; 4 * LANES]) {
        let [first, second] = rows;
        for (pair, (first, second)) in to.as_chunks_mut().0.iter_mut().zip(first.iter().zip(second)) {
            *pair = [*first, *second];
        }
    }

    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn multiply(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a·b + c`, fused where that is one instruction.
    fn multiply_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    fn divide(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a` if `a < b`, else `b`: a NaN in `b` stays.
    fn minimum(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a` if `a > b`, else `b`: a NaN in `b` stays.
    fn maximum(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// 0 in the lanes with `|value| ≥ threshold`.
    fn below(self, value: Self::Floats, threshold: Self::Floats) -> Self::Floats;
    /// 0 in the lanes whose mask is 0 (the others are all ones).
    fn masked(self, value: Self::Floats, mask: &[u32; LANES]) -> Self::Floats;
    /// Bit i: whether lane i has `|value| ≥ threshold`.
    fn reaching(self, value: Self::Floats, threshold: Self::Floats) -> u32;

    /// The smallest lane, if none is a NaN.
    fn smallest(self, value: Self::Floats) -> f32;
    /// The largest lane, if none is a NaN.
    fn largest(self, value: Self::Floats) -> f32;

    fn splat_int(self, value: i32) -> Self::Ints;
    fn load_int(self, from: &[i32; LANES]) -> Self::Ints;
    fn store_int(self, value: Self::Ints, to: &mut [i32; LANES]);
    /// Modulo 2³².
    fn add_int(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// `a − b·c` modulo 2³².
    fn subtract_product(self, a: Self::Ints, b: Self::Ints, c: Self::Ints) -> Self::Ints;
    /// Kept in [−127, 127].
    fn clamp_code(self, value: Self::Ints) -> Self::Ints;
    /// The larger, as signed numbers.
    fn maximum_int(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// The largest lane, as a signed number.
    fn largest_int(self, value: Self::Ints) -> i32;
    /// Adds 1 to the counts of lanes that are at most that of `limit`, as signed numbers.
    fn count_up_to(self, counts: Self::Ints, value: Self::Ints, limit: Self::Ints) -> Self::Ints;
    /// The sum of all lanes, modulo 2³².
    fn sum_int(self, value: Self::Ints) -> i32;
    /// The bits without the sign: ordered like magnitudes, NaN above infinity.
    fn magnitude(self, value: Self::Floats) -> Self::Ints;
    /// Half to even where `|value|` ≤ 2²²; else any number.
    fn round(self, value: Self::Floats) -> Self::Ints;
    /// Half to even.
    fn to_floats(self, value: Self::Ints) -> Self::Floats;
    /// 2ⁿ, n in [−126, 127].
    fn power_of_two(self, n: Self::Ints) -> Self::Floats;
    /// The low byte of each lane that is a code, of others any byte; with the bits that are set in `offset` flipped.
    fn store_codes(self, value: Self::Ints, offset: u8, to: &mut [i8; LANES]);
    /// The same of four vectors.
    #[inline(always)]
    fn store_code_block(self, codes: [Self::Ints; 4], offset: u8, to: &mut [i8; 4 * LANES]) {
        for (codes, to) in codes.into_iter().zip(to.as_chunks_mut().0) {
            self.store_codes(codes, offset, to);
        }
    }
    /// 32 numbers, where there is a mask those with a mask of 0 as 0 (the others' is all ones), in two vectors and an order that
    /// [`store_code_block_alternating`](Self::store_code_block_alternating) undoes: that which is least work.
    #[inline(always)]
    fn load_bf16_alternating(
        self,
        from: &[bf16; 2 * LANES],
        mask: Option<&[u16; 2 * LANES]>,
    ) -> [Self::Floats; 2] {
        let mut kept = *from;
        for (kept, mask) in kept.iter_mut().zip(mask.into_iter().flatten()) {
            *kept = bf16::from_bits(kept.to_bits() & mask);
        }
        let narrow = kept.as_chunks().0;
        [self.load_bf16(&narrow[0]), self.load_bf16(&narrow[1])]
    }
    /// As [`store_code_block`](Self::store_code_block), of what was loaded by
    /// [`load_bf16_alternating`](Self::load_bf16_alternating), twice.
    #[inline(always)]
    fn store_code_block_alternating(self, codes: [Self::Ints; 4], offset: u8, to: &mut [i8; 4 * LANES]) {
        self.store_code_block(codes, offset, to);
    }
    /// Byte `lane` of each group of four, sign-extended.
    fn byte_of_k4(self, k4: &[[i8; 4]; LANES], lane: u32) -> Self::Ints;
}

/// A type of numbers that are loaded into a vector of f32.
pub(crate) trait Lane: Plain + Default + Send + Sync + 'static {
    /// Exact.
    fn load<I: Instructions>(simd: I, from: &[Self; LANES]) -> I::Floats;
}

/// A floating-point type, as it is stored from a vector of f32.
pub(crate) trait FloatLane: Lane + Element {
    /// The smallest magnitude that `store` rounds to infinity.
    const LIMIT: f32;
    /// Half to even.
    fn store<I: Instructions>(simd: I, value: I::Floats, to: &mut [Self; LANES]);
    /// The same of two vectors.
    #[inline(always)]
    fn store_pair<I: Instructions>(simd: I, values: [I::Floats; 2], to: &mut [Self; 2 * LANES]) {
        for (value, to) in values.into_iter().zip(to.as_chunks_mut().0) {
            Self::store(simd, value, to);
        }
    }
}

impl Lane for f32 {
    #[inline(always)]
    fn load<I: Instructions>(simd: I, from: &[Self; LANES]) -> I::Floats {
        simd.load(from)
    }
}

impl FloatLane for f32 {
    const LIMIT: f32 = f32::INFINITY;
    #[inline(always)]
    fn store<I: Instructions>(simd: I, value: I::Floats, to: &mut [Self; LANES]) {
        simd.store(value, to);
    }
}

impl Lane for f16 {
    #[inline(always)]
    fn load<I: Instructions>(simd: I, from: &[Self; LANES]) -> I::Floats {
        simd.load_f16(from)
    }
}

impl FloatLane for f16 {
    /// Half a unit beyond the largest number, 65504.
    const LIMIT: f32 = 65_520.0;
    #[inline(always)]
    fn store<I: Instructions>(simd: I, value: I::Floats, to: &mut [Self; LANES]) {
        simd.store_f16(value, to);
    }
}

impl Lane for bf16 {
    #[inline(always)]
    fn load<I: Instructions>(simd: I, from: &[Self; LANES]) -> I::Floats {
        simd.load_bf16(from)
    }
}

impl FloatLane for bf16 {
    /// Half a unit beyond the largest number, 3.39e38.
    const LIMIT: f32 = f32::from_bits(0x7F7F_8000);
    #[inline(always)]
    fn store<I: Instructions>(simd: I, value: I::Floats, to: &mut [Self; LANES]) {
        simd.store_bf16(value, to);
    }
    #[inline(always)]
    fn store_pair<I: Instructions>(simd: I, values: [I::Floats; 2], to: &mut [Self; 2 * LANES]) {
        simd.store_bf16_pair(values, to);
    }
}

impl Lane for i8 {
    #[inline(always)]
    fn load<I: Instructions>(simd: I, from: &[Self; LANES]) -> I::Floats {
        simd.load_i8(from)
    }
}

impl Instructions for Portable {
    type Floats = [f32; LANES];
    type Ints = [i32; LANES];

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Floats {
        [value; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::Floats {
        *from
    }
    #[inline(always)]
    fn store(self, value: Self::Floats, to: &mut [f32; LANES]) {
        *to = value;
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::Floats {
        from.map(f16::to_f32)
    }
    #[inline(always)]
    fn store_f16(self, value: Self::Floats, to: &mut [f16; LANES]) {
        *to = value.map(f16::from_f32);
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Self::Floats {
        from.map(f32::from)
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::Floats {
        from.map(convert::bf16_to_f32)
    }
    #[inline(always)]
    fn store_bf16(self, value: Self::Floats, to: &mut [bf16; LANES]) {
        *to = value.map(convert::f32_to_bf16);
    }

    #[inline(always)]
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn multiply(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn multiply_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        // `mul_add` would be a library call without the instruction.
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn divide(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn minimum(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn maximum(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn below(self, value: Self::Floats, threshold: Self::Floats) -> Self::Floats {
        std::array::from_fn(|i| if value[i].abs() >= threshold[i] { 0.0 } else { value[i] })
    }
    #[inline(always)]
    fn masked(self, value: Self::Floats, mask: &[u32; LANES]) -> Self::Floats {
        std::array::from_fn(|i| f32::from_bits(value[i].to_bits() & mask[i]))
    }
    #[inline(always)]
    fn reaching(self, value: Self::Floats, threshold: Self::Floats) -> u32 {
        (0..LANES).fold(0, |bits, i| bits | (u32::from(value[i].abs() >= threshold[i]) << i))
    }

    #[inline(always)]
    fn smallest(self, value: Self::Floats) -> f32 {
        value.into_iter().fold(f32::INFINITY, |smallest, lane| if lane < smallest { lane } else { smallest })
    }
    #[inline(always)]
    fn largest(self, value: Self::Floats) -> f32 {
        value.into_iter().fold(f32::NEG_INFINITY, |largest, lane| if lane > largest { lane } else { largest })
    }

    #[inline(always)]
    fn splat_int(self, value: i32) -> Self::Ints {
        [value; LANES]
    }
    #[inline(always)]
    fn load_int(self, from: &[i32; LANES]) -> Self::Ints {
        *from
    }
    #[inline(always)]
    fn store_int(self, value: Self::Ints, to: &mut [i32; LANES]) {
        *to = value;
    }
    #[inline(always)]
    fn add_int(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn subtract_product(self, a: Self::Ints, b: Self::Ints, c: Self::Ints) -> Self::Ints {
        std::array::from_fn(|i| a[i].wrapping_sub(b[i].wrapping_mul(c[i])))
    }
    #[inline(always)]
    fn clamp_code(self, value: Self::Ints) -> Self::Ints {
        value.map(|value| value.clamp(-127, 127))
    }
    #[inline(always)]
    fn maximum_int(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        std::array::from_fn(|i| a[i].max(b[i]))
    }
    #[inline(always)]
    fn largest_int(self, value: Self::Ints) -> i32 {
        value.into_iter().fold(i32::MIN, i32::max)
    }
    #[inline(always)]
    fn count_up_to(self, counts: Self::Ints, value: Self::Ints, limit: Self::Ints) -> Self::Ints {
        std::array::from_fn(|i| counts[i] + i32::from(value[i] <= limit[i]))
    }
    #[inline(always)]
    fn sum_int(self, value: Self::Ints) -> i32 {
        value.into_iter().fold(0, i32::wrapping_add)
    }
    #[inline(always)]
    fn magnitude(self, value: Self::Floats) -> Self::Ints {
        value.map(|value| value.abs().to_bits().cast_signed())
    }
    #[inline(always)]
    fn round(self, value: Self::Floats) -> Self::Ints {
        value.map(convert::round)
    }
    #[inline(always)]
    fn to_floats(self, value: Self::Ints) -> Self::Floats {
        value.map(convert::accumulator)
    }
    #[inline(always)]
    fn power_of_two(self, n: Self::Ints) -> Self::Floats {
        n.map(convert::power_of_two)
    }
    #[inline(always)]
    fn store_codes(self, value: Self::Ints, offset: u8, to: &mut [i8; LANES]) {
        *to = value.map(|code| convert::code_byte(code, offset));
    }
    #[inline(always)]
    fn byte_of_k4(self, k4: &[[i8; 4]; LANES], lane: u32) -> Self::Ints {
        k4.map(|quad| i32::from(quad[lane as usize]))
    }
}
