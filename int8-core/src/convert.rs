//! Every potentially lossy numeric conversion of this crate, with the reason why it is right.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "the one file of such conversions; each function states why its conversion is right"
)]

/// `f64 → f32`, rounded half to even: what `as` does.
pub(crate) fn f64_to_f32(value: f64) -> f32 {
    value as f32
}

/// `f64 → f32`, rounded to odd: where the result is inexact, the neighbour whose last bit is 1.
///
/// A second rounding, to a type with at least two bits less than f32, then equals rounding once (Boldo and Melquiond, *Emulation
/// of FMA and correctly rounded sums*, 2008). Rounding to nearest twice could move a value just above a tie of the narrow type
/// to the wrong side.
pub(crate) fn f64_to_f32_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let exact = f64::from(nearest);
    if exact == value || !nearest.is_finite() || nearest.to_bits() & 1 == 1 {
        nearest
    } else if exact < value {
        nearest.next_up()
    } else {
        nearest.next_down()
    }
}

/// The code of `x·127/s`: rounded half to even, clamped to [−127, 127]. The clamp moves a value by the rounding error of
/// `x·(127/s)`, or by one code for zero-point rows.
pub(crate) fn code(value: f32) -> i8 {
    value.round_ties_even().clamp(-127.0, 127.0) as i8
}

/// A finite `value` ≥ 0 rounded up to bf16, or the largest finite bf16, as f32.
pub(crate) fn bf16_up(value: f32) -> f32 {
    let up = f32::from_bits(value.to_bits().wrapping_add(0xFFFF) & 0xFFFF_0000);
    if up.is_finite() { up } else { f32::from_bits(value.to_bits() & 0xFFFF_0000) }
}

/// An integer-valued `f32` of magnitude at most 254 (a rounded zero point) as `i32`.
pub(crate) fn small_integer(value: f32) -> i32 {
    value as i32
}

/// Codes and zero points lie in [−127, 127] and so does their sum after the clamp.
pub(crate) fn clamped_code(value: i32) -> i8 {
    value.clamp(-127, 127) as i8
}

/// An accumulator, at most K·254² ≤ 2⁵³ for every K that fits memory: exact.
pub(crate) fn i64_to_f64(value: i64) -> f64 {
    value as f64
}

/// A count (rows, columns, elements), below 2⁵³: exact.
pub(crate) fn count(value: usize) -> f64 {
    value as f64
}

/// A length that fits in i64 because it is a length in memory.
pub(crate) fn length(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The top 24 bits of a random word as a number in [0, 1): exact in `f32`.
pub(crate) fn unit_interval(bits: u64) -> f32 {
    ((bits >> 40) as f32) / 16_777_216.0
}

/// A random word reduced to an index below `bound` (bound > 0).
pub(crate) fn index_below(bits: u64, bound: usize) -> usize {
    (bits % bound as u64) as usize
}
