//! Every numeric conversion of this crate that can lose something, each with the reason why it does not.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "this is the one file where they are decided; each function says why its conversion is right"
)]

use half::bf16;

/// 1.5·2²³: adding it to an `f32` of magnitude at most 2²² rounds that number to an integer, half to even, and leaves
/// the integer in the low bits of the sum. One addition where the baseline instruction sets have no rounding.
const ROUNDING: f32 = 12_582_912.0;

/// `value` rounded half to even, for magnitudes up to 2²².
#[inline(always)]
pub(crate) fn round(value: f32) -> i32 {
    ((value + ROUNDING).to_bits() as i32).wrapping_sub(ROUNDING.to_bits() as i32)
}

/// A code in [−127, 127] plus the kernel's offset (0 or 128), as the byte that is stored: the low eight bits.
#[inline(always)]
pub(crate) fn code_byte(code: i32, offset: u8) -> i8 {
    (code as i8) ^ (offset as i8)
}

/// A zero point, in [−127, 127].
#[inline(always)]
pub(crate) fn small(value: i32) -> i8 {
    value as i8
}

/// An accumulator, rounded once, half to even.
#[inline(always)]
pub(crate) fn accumulator(value: i32) -> f32 {
    value as f32
}

/// A corrected accumulator of a K too large for i32, rounded once, half to even.
#[inline(always)]
pub(crate) fn wide_accumulator(value: i64) -> f32 {
    value as f32
}

/// `f64 → f32`, rounded half to even.
#[inline(always)]
pub(crate) fn f64_to_f32(value: f64) -> f32 {
    value as f32
}

/// A count below 2⁵³: exact.
#[inline(always)]
pub(crate) fn count(value: usize) -> f64 {
    value as f64
}

/// A length as f32, for means and distances: exact up to 2²⁴, beyond that rounded.
#[inline(always)]
pub(crate) fn real(value: usize) -> f32 {
    value as f32
}

/// 2ⁿ for n in [−126, 127]: n + 127 is the exponent's field.
#[inline(always)]
pub(crate) fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// A value reduced modulo 2³²: used only where the final sum is known to fit i32, so that wrapping is exact.
#[inline(always)]
pub(crate) fn wrap(value: i64) -> i32 {
    value as i32
}

/// A length in memory: at most 2⁶³ − 1.
#[inline(always)]
pub(crate) fn length(value: usize) -> i64 {
    value as i64
}

/// An index of an array as a pointer offset: at most isize::MAX by the layout of arrays.
#[inline(always)]
pub(crate) fn offset(value: usize) -> isize {
    value as isize
}

/// The position of an outlier column in the list of outlier columns, at most K ≤ 133,144.
#[inline(always)]
pub(crate) fn index(value: usize) -> u32 {
    value as u32
}

/// The lower 16 bits, of a number that has no others.
#[inline(always)]
pub(crate) fn low_half(value: u32) -> u16 {
    value as u16
}

/// `bf16 → f32`: the upper half of the bits. Exact.
#[inline(always)]
pub(crate) fn bf16_to_f32(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// `f32 → bf16`, half to even, without a branch: adding 0x7FFF and the lowest kept bit carries exactly when it must.
#[inline(always)]
pub(crate) fn f32_to_bf16(value: f32) -> bf16 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7FFF + ((bits >> 16) & 1))) >> 16;
    // A NaN must not carry into an infinity: keep its upper half and make it quiet.
    let quiet = (bits >> 16) | 0x40;
    let is_nan = bits & 0x7FFF_FFFF > 0x7F80_0000;
    bf16::from_bits((if is_nan { quiet } else { rounded }) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_is_half_to_even() {
        for value in
            [0.5_f32, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5, 0.499_999_97, -127.4, 254.5, 0.0, -0.0]
        {
            assert_eq!(round(value), value.round_ties_even() as i32, "{value}");
        }
    }

    #[test]
    fn bf16_rounding_is_that_of_half() {
        let mut bits = 0_u32;
        loop {
            let value = f32::from_bits(bits);
            let (ours, theirs) = (f32_to_bf16(value), bf16::from_f32(value));
            assert!(ours == theirs || (ours.is_nan() && theirs.is_nan()), "{value:e}");
            assert_eq!(bf16_to_f32(theirs).to_bits(), theirs.to_f32().to_bits());
            match bits.checked_add(40_503) {
                Some(next) => bits = next,
                None => break,
            }
        }
    }
}
