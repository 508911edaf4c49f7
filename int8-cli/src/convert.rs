//! Every numeric conversion of this crate that can lose something, each with the reason why it does not.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "this is the one file where they are decided"
)]

/// A count or size, below 2⁵³: exact.
pub(crate) fn real(count: usize) -> f64 {
    count as f64
}

/// A counter, below 2⁵³: exact.
pub(crate) fn real_u64(count: u64) -> f64 {
    count as f64
}

/// A count as the progress bar takes it: no target has more than 64 bits.
pub(crate) fn count(count: usize) -> u64 {
    count as u64
}

/// A rate that is not negative, without its fraction; saturates.
pub(crate) fn whole(value: f64) -> u64 {
    value as u64
}

/// A setting given in double precision, as the f32 that is computed with: infinite where it is out of range.
pub(crate) fn single(value: f64) -> f32 {
    value as f32
}

/// A place in a plot, in pixels: saturates, 0 for NaN.
pub(crate) fn pixels(length: f64) -> i32 {
    length as i32
}

/// The mean of channels of pixels, rounded down; of none, black.
pub(crate) fn average(channels: impl Iterator<Item = u8>) -> u8 {
    let (sum, count) =
        channels.fold((0_u32, 0), |(sum, count), channel| (sum + u32::from(channel), count + 1));
    (sum / count.max(1)) as u8
}
