//! The one lossy numeric conversion of checkpoint reading.
#![allow(clippy::cast_possible_truncation, reason = "narrowing f64 to f32 is what the function is for")]

/// The nearest f32, ties to even; beyond f32's range ±infinity, NaN stays NaN.
pub(super) fn f64_to_f32(value: f64) -> f32 {
    value as f32
}
