//! `int8_cuda_exchange.h` in Rust.

use std::ffi::c_void;

use crate::{int8_cuda_status, int8_cuda_stream, int8_cuda_transform};

pub const INT8_CUDA_MAX_RANKS: usize = 8;
pub const INT8_CUDA_SIGNAL_BYTES: usize = 65536;
pub const INT8_CUDA_PACKETS: usize = 131_072;

/// `INT8_CUDA_RECEIVE_BYTES`
pub const fn int8_cuda_receive_bytes(ranks: usize) -> usize {
    ranks * 2 * (INT8_CUDA_PACKETS + 1024) * 8
}

pub const INT8_CUDA_RANGE_COLUMNS: usize = 128;

/// What the ranks signal each other by.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_signals {
    pub of_rank: [*mut c_void; INT8_CUDA_MAX_RANKS],
    pub receive: [*mut c_void; INT8_CUDA_MAX_RANKS],
    /// u32 `[1]`
    pub failed: *mut u32,
    pub ranks: i32,
    pub rank: i32,
}

/// The sum of all ranks' parts.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_exchange_sum_params {
    pub signals: int8_cuda_signals,
    /// f32 `[rows·width]`
    pub parts: [*const f32; INT8_CUDA_MAX_RANKS],
    /// f32 `[rows·width]`
    pub out: *mut f32,
    pub stream: int8_cuda_stream,
    pub rows: i64,
    pub width: i64,
    pub store: i32,
    pub waits: i32,
}

/// The range of each row over all ranks.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_exchange_ranges_params {
    pub signals: int8_cuda_signals,
    /// f32 `[rows, 2]`
    pub ranges: [*mut f32; INT8_CUDA_MAX_RANKS],
    pub input: *const c_void,
    /// `[rows, k + INT8_CUDA_RANGE_COLUMNS]`
    pub x: *mut c_void,
    pub workspace: *mut c_void,
    pub stream: int8_cuda_stream,
    pub workspace_bytes: usize,
    pub rows: i64,
    pub k: i64,
    pub ldi: i64,
    pub ldx: i64,
    pub input_element: i32,
    pub element: i32,
    pub rule: i32,
    pub outlier_granularity: i32,
    pub row_maximum: i32,
    pub threshold: f32,
    pub transform: int8_cuda_transform,
}

/// All ranks' columns on the first.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_exchange_columns_params {
    pub signals: int8_cuda_signals,
    /// f32 `[rows, widths[r]]`
    pub parts: [*const f32; INT8_CUDA_MAX_RANKS],
    /// f32 `[rows, Σ widths]`
    pub out: *mut f32,
    pub stream: int8_cuda_stream,
    pub rows: i64,
    pub widths: [i64; INT8_CUDA_MAX_RANKS],
}

/// Some columns of a quantised weight.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_slice_params {
    /// i8 `[n, ldq]`
    pub codes: *const i8,
    /// i32 `[n]`
    pub zero_points: *const i32,
    /// i8 `[n, ldo]`
    pub out: *mut i8,
    /// i32 `[n]`
    pub code_sums: *mut i32,
    pub stream: int8_cuda_stream,
    pub n: i64,
    pub first: i64,
    pub count: i64,
    pub zeros: i64,
    pub ldq: i64,
    pub ldo: i64,
}

// SAFETY of every call below: pointers are valid as the header says for the sizes given, and stay so until the stream has
// passed the call; a context is current on the calling thread, and reaches the memory of the other ranks.
unsafe extern "C" {
    pub fn int8_cuda_exchange_sum(params: *const int8_cuda_exchange_sum_params) -> int8_cuda_status;
    pub fn int8_cuda_exchange_ranges_workspace(
        params: *const int8_cuda_exchange_ranges_params,
        bytes: *mut usize,
    ) -> int8_cuda_status;
    pub fn int8_cuda_exchange_ranges(params: *const int8_cuda_exchange_ranges_params) -> int8_cuda_status;
    pub fn int8_cuda_exchange_columns(params: *const int8_cuda_exchange_columns_params) -> int8_cuda_status;
    pub fn int8_cuda_slice(params: *const int8_cuda_slice_params) -> int8_cuda_status;
}
