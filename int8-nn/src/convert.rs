//! Every numeric conversion of this crate that can lose something, each with the reason why it does not (the checkpoint
//! reader keeps its own beside its decoder).
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "this is the one file where they are decided; each function says why its conversion is right"
)]

/// A count or size, below 2⁵³: exact.
pub(crate) fn f64_from(count: usize) -> f64 {
    count as f64
}

/// A setting given in double precision, as the f32 that is computed with.
pub(crate) fn f32_from(value: f64) -> f32 {
    value as f32
}

/// `⌊size·fraction⌋` for a positive fraction, as Python's `int()` does it.
pub(crate) fn fraction_of(size: usize, fraction: f64) -> usize {
    (size as f64 * fraction) as usize
}

/// A positive number as a size, if it is whole and below 2³¹.
pub(crate) fn whole(value: f64) -> Option<usize> {
    (value.fract() == 0.0 && (0.0..2_147_483_648.0).contains(&value)).then_some(value as usize)
}

/// `1/√size`.
pub(crate) fn inverse_root(size: usize) -> f32 {
    (1.0 / (size as f64).sqrt()) as f32
}

/// `⌊x⌋` for 0 ≤ x < 2³¹; 0 below.
pub(crate) fn floor(x: f32) -> usize {
    x as usize
}

/// A token id as an index: every supported target has at least 32-bit addresses.
pub(crate) fn index(id: u32) -> usize {
    id as usize
}

/// An index into a vocabulary as a token id: vocabularies are checked to have less than 2³¹ entries.
pub(crate) fn token_id(index: usize) -> u32 {
    index as u32
}

/// The place of a column among those that are kept, at most K ≤ 133,144.
pub(crate) fn place(index: usize) -> u32 {
    index as u32
}

/// The index of a row of a forward on a GPU, whose batches have less than 2³¹ rows.
#[cfg(feature = "cuda")]
#[expect(clippy::cast_possible_wrap, reason = "see above")]
pub(crate) fn row(index: usize) -> i32 {
    index as i32
}

/// A length in memory as a count of bytes.
pub(crate) fn bytes(length: usize) -> u64 {
    length as u64
}

/// The upper 53 bits of a random word as a number in [0, 1): exact.
pub(crate) fn unit_interval(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// A count of tokens or values, below 2⁵³: exact.
pub(crate) fn f64_from_u64(count: u64) -> f64 {
    count as f64
}

/// `⌊value⌋`, for NaN and what is out of range the nearest end.
pub(crate) fn step(value: f32) -> i32 {
    if value.is_nan() { i32::MAX } else { value.floor() as i32 }
}

/// A bin's number: small, exact.
pub(crate) fn f32_from_step(step: i32) -> f32 {
    step as f32
}

/// An integer that orders as the value does; not for NaN.
pub(crate) fn ordered(value: f32) -> i64 {
    let magnitude = i64::from(value.abs().to_bits());
    if value < 0.0 { -magnitude } else { magnitude }
}
