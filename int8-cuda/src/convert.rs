//! Every numeric conversion of this crate.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "checked here"
)]

/// A size as the kernels take it. Sizes of allocated memory fit into 63 bits.
pub(crate) fn size(value: usize) -> i64 {
    value as i64
}

/// A size the kernels returned; never negative.
pub(crate) fn from_size(value: i64) -> usize {
    value.max(0) as usize
}

/// An offset the kernels returned, on a 64-bit machine.
pub(crate) fn from_offset(value: u64) -> usize {
    value as usize
}

/// A count or index the kernels returned; never negative.
pub(crate) fn from_count(value: i32) -> usize {
    value.max(0) as usize
}

pub(crate) fn from_u32(value: u32) -> usize {
    value as usize
}

pub(crate) fn index(value: usize) -> i32 {
    value as i32
}

/// A count or size, below 2⁵³: exact.
pub(crate) fn real(count: usize) -> f64 {
    count as f64
}

/// This share of `k` columns, rounded up.
pub(crate) fn columns(share: f32, k: usize) -> usize {
    (share * k as f32).ceil() as usize
}

/// A byte offset as a part of a device address.
pub(crate) fn address(offset: usize) -> u64 {
    offset as u64
}

/// A limit on a count as the kernels take it: what is larger limits nothing.
pub(crate) fn index_at_most(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(0)
}
