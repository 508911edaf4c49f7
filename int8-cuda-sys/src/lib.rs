//! `int8_cuda.h`, `int8_cuda_model.h` and `int8_cuda_exchange.h` in Rust: one `repr(C)` struct an operation, an explicit stream, caller-owned workspaces, a status returned.
//! The header documents every field; the ABI test compares sizes and offsets with the C++ compiler's.
#![allow(unsafe_code, reason = "declares C functions")]
#![allow(non_camel_case_types, reason = "the names are those of the C header")]
#![allow(missing_docs, reason = "items without a comment have the name and meaning of the header")]

use std::ffi::{c_char, c_void};

mod exchange;
mod model;

pub use exchange::*;
pub use model::*;

/// `cudaStream_t`, the same as the driver's `CUstream`. Null is the legacy default stream.
pub type int8_cuda_stream = *mut c_void;

/// The status every operation returns; 0 is success.
pub type int8_cuda_status = i32;

/// The version of these declarations.
pub const INT8_CUDA_ABI: i32 = 5;
pub const INT8_CUDA_OK: i32 = 0;
pub const INT8_CUDA_INVALID: i32 = 1;
pub const INT8_CUDA_UNSUPPORTED: i32 = 2;
pub const INT8_CUDA_WORKSPACE: i32 = 3;
pub const INT8_CUDA_DEVICE: i32 = 4;
pub const INT8_CUDA_F16: i32 = 0;
pub const INT8_CUDA_BF16: i32 = 1;
pub const INT8_CUDA_F32: i32 = 2;
pub const INT8_CUDA_ABSMAX: i32 = 0;
pub const INT8_CUDA_ZEROPOINT: i32 = 1;
pub const INT8_CUDA_PER_ROW: i32 = 0;
pub const INT8_CUDA_PER_TENSOR: i32 = 1;
pub const INT8_CUDA_RULE_NONE: i32 = 0;
pub const INT8_CUDA_RULE_ABSOLUTE: i32 = 1;
pub const INT8_CUDA_RULE_MEDIAN: i32 = 2;
pub const INT8_CUDA_RULE_MEAN: i32 = 3;
pub const INT8_CUDA_COLUMN: i32 = 0;
pub const INT8_CUDA_VALUE: i32 = 1;
pub const INT8_CUDA_MAXIMUM_PAPER: i32 = 0;
pub const INT8_CUDA_MAXIMUM_BITSANDBYTES: i32 = 1;
pub const INT8_CUDA_OVERWRITE: i32 = 0;
pub const INT8_CUDA_ACCUMULATE: i32 = 1;
pub const INT8_CUDA_AUTO: i32 = 0;

// The algorithms of the int8 GEMM, from the C table.
include!(concat!(env!("OUT_DIR"), "/algorithms.rs"));

/// Properties of the current device.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_device_info {
    pub compute_major: i32,
    pub compute_minor: i32,
    pub multiprocessors: i32,
    /// 1: the sm_90a kernels run here
    pub has_wgmma: i32,
    /// 1: libcublasLt.so.13 was found
    pub has_cublaslt: i32,
    /// 13000 means 13.0
    pub driver_version: i32,
    /// 13000 means 13.0
    pub runtime_version: i32,
    pub reserved: i32,
    pub l2_bytes: u64,
    pub memory_bytes: u64,
    pub name: [c_char; 256],
}

/// Rows of f16|bf16|f32 to int8 codes. Used for x (with an outlier rule) and for W (rule NONE).
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_quantize_params {
    /// f16|bf16|f32 `[rows, inner]` row-major, ld = ldx
    pub x: *const c_void,
    /// i8 `[rows, inner]` row-major, ld = ldq; columns inner..ldq are set to 0
    pub codes: *mut i8,
    /// f32 `[rows]`
    pub scales: *mut f32,
    /// i32 `[rows]`; may be NULL for absmax
    pub zero_points: *mut i32,
    /// i32 `[rows]`, sum of the row's codes; may be NULL
    pub code_sums: *mut i32,
    /// int8_cuda_quantize_workspace bytes, 256-byte aligned
    pub workspace: *mut c_void,
    pub stream: int8_cuda_stream,
    pub workspace_bytes: usize,
    pub rows: i64,
    pub inner: i64,
    /// elements; ldq a multiple of 16, codes 16-byte aligned
    pub ldx: i64,
    /// elements; ldq a multiple of 16, codes 16-byte aligned
    pub ldq: i64,
    pub element: i32,
    pub encoding: i32,
    pub granularity: i32,
    pub rule: i32,
    pub outlier_granularity: i32,
    pub row_maximum: i32,
    pub threshold: f32,
    pub reserved: i32,
}

/// Activations as codes and outliers: written by `int8_cuda_prologue`, read by `int8_cuda_gemm`. The caller's buffers and sizes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_activations {
    /// i8 `[m, k]` row-major, ld = ldq; columns k..ldq are set to 0; 16-byte aligned
    pub codes: *mut i8,
    /// f32 `[m]`
    pub scales: *mut f32,
    /// i32 `[m]`; may be NULL for absmax
    pub zero_points: *mut i32,
    /// i32 `[m]`, sum of the row's codes; needed by weights with zero points, else may be NULL
    pub code_sums: *mut i32,
    /// u32 `[1]`, columns with an outlier; this and the next two may be NULL for rule NONE
    pub outlier_count: *mut u32,
    /// i32 `[k]`, the first outlier_count of it written, ascending
    pub outlier_columns: *mut i32,
    /// element type `[m, round_up(k,64)]` in panels of 64 columns, each row-major, 16-byte aligned
    pub outlier_values: *mut c_void,
    pub m: i64,
    pub k: i64,
    /// elements; round_up(k,16)
    pub ldq: i64,
    pub element: i32,
    pub encoding: i32,
    pub rule: i32,
    pub reserved: i32,
}

/// Stage 1: outlier rule and quantisation of x.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_prologue_params {
    /// f16|bf16|f32 `[m, k]` row-major, ld = ldx; not read again by int8_cuda_gemm
    pub x: *const c_void,
    /// int8_cuda_prologue_workspace bytes, 256-byte aligned; zeroed before its first use
    pub workspace: *mut c_void,
    pub stream: int8_cuda_stream,
    pub workspace_bytes: usize,
    /// elements
    pub ldx: i64,
    pub granularity: i32,
    pub outlier_granularity: i32,
    pub row_maximum: i32,
    pub threshold: f32,
    pub activations: int8_cuda_activations,
}

/// Stages 2 and 3: y = GEMM and epilogue of one weight; the formula is [`int8_cuda_linear_params`]'.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_gemm_params {
    /// i8 `[n, k]` row-major, ld = ldw; columns k..round_up(k,16) are 0; 16-byte aligned
    pub weight: *const i8,
    /// f32 `[n]`
    pub weight_scales: *const f32,
    /// i32 `[n]`, or NULL: all 0
    pub weight_zero_points: *const i32,
    /// i32 `[n]`; needed when the activations are zero-point encoded, else may be NULL
    pub weight_code_sums: *const i32,
    /// exact weight columns in the activations' element type, or NULL: none kept
    pub exact: *const c_void,
    /// i32 `[k]`: index c of column k among the kept ones or -1; NULL: c = k, all kept
    pub exact_index: *const i32,
    /// f32 `[n]`, or NULL
    pub bias: *const f32,
    /// element type `[m, n]` row-major, ld = ldy
    pub y: *mut c_void,
    /// int8_cuda_gemm_workspace bytes, 256-byte aligned; need not be zeroed
    pub workspace: *mut c_void,
    pub stream: int8_cuda_stream,
    pub workspace_bytes: usize,
    pub n: i64,
    /// elements; ldw a multiple of 16
    pub ldw: i64,
    /// elements
    pub ldy: i64,
    /// element (n, c) of exact lies at n*stride_n + c*stride_c
    pub exact_stride_n: i64,
    /// element (n, c) of exact lies at n*stride_n + c*stride_c
    pub exact_stride_c: i64,
    /// any of the layer's but GEMV and GEMV_TMA
    pub algorithm: i32,
    pub store: i32,
    /// as in int8_cuda_linear_params
    pub y_element: i32,
    pub reserved: i32,
    pub activations: int8_cuda_activations,
}

/// Workspace and algorithm of `int8_cuda_gemm`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_gemm_layout {
    /// bytes of the workspace; enough for every smaller m, too
    pub total: u64,
    /// the algorithm for this m
    pub algorithm: i32,
    pub reserved: i32,
}

/// y = x * W^T + bias, LLM.int8(): outlier rule, quantisation of x, int8 product, outlier product, scales, bias.
///
/// `y[m,n]` = `acc[m,n]` * (`s_x[m]`/127) * (`s_w[n]`/127) + sum over outliers k of `x[m,k]` * `w[n,k]` + `bias[n]`, in f32,
/// rounded once. acc is the exact integer sum of (q_x - z_x)(q_w - z_w). `w[n,k]` is the exact value where kept, else
/// (q_w - z_w)*s_w/127.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_linear_params {
    /// f16|bf16|f32 `[m, k]` row-major, ld = ldx
    pub x: *const c_void,
    /// i8 `[n, k]` row-major, ld = ldw; columns k..round_up(k,16) are 0; 16-byte aligned
    pub weight: *const i8,
    /// f32 `[n]`
    pub weight_scales: *const f32,
    /// i32 `[n]`, or NULL: all 0
    pub weight_zero_points: *const i32,
    /// i32 `[n]`; needed when x is zero-point encoded, else may be NULL
    pub weight_code_sums: *const i32,
    /// exact weight columns in x's element type, or NULL: none kept
    pub exact: *const c_void,
    /// i32 `[k]`: index c of column k among the kept ones or -1; NULL: c = k, all kept
    pub exact_index: *const i32,
    /// f32 `[n]`, or NULL
    pub bias: *const f32,
    /// x's element type or f32 `[m, n]` row-major, ld = ldy
    pub y: *mut c_void,
    /// int8_cuda_linear_workspace bytes, 256-byte aligned
    pub workspace: *mut c_void,
    pub stream: int8_cuda_stream,
    pub workspace_bytes: usize,
    pub m: i64,
    pub n: i64,
    pub k: i64,
    /// elements; ldw a multiple of 16
    pub ldx: i64,
    /// elements; ldw a multiple of 16
    pub ldw: i64,
    /// elements; ldw a multiple of 16
    pub ldy: i64,
    /// element (n, c) of exact lies at n*stride_n + c*stride_c
    pub exact_stride_n: i64,
    /// element (n, c) of exact lies at n*stride_n + c*stride_c
    pub exact_stride_c: i64,
    /// of x
    pub element: i32,
    /// of x
    pub encoding: i32,
    /// of x
    pub granularity: i32,
    pub rule: i32,
    pub outlier_granularity: i32,
    pub row_maximum: i32,
    pub threshold: f32,
    pub algorithm: i32,
    pub store: i32,
    /// element, or INT8_CUDA_F32: a residual stream is wider than x
    pub y_element: i32,
    /// element, or INT8_CUDA_F32
    pub x_element: i32,
    pub reserved: i32,
    pub transform: int8_cuda_transform,
}

/// Where int8_cuda_linear's intermediate results lie in the workspace: byte offsets, for tests and statistics. GEMV and
/// GEMV_TMA have none.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_linear_layout {
    /// i8 `[m, ldq]`
    pub codes: u64,
    /// f32 `[m]`
    pub scales: u64,
    /// i32 `[m]`
    pub zero_points: u64,
    /// i32 `[m]`
    pub code_sums: u64,
    /// u32 `[1]` columns with an outlier; not written for rule NONE
    pub outlier_count: u64,
    /// i32 `[outlier_count]`, ascending
    pub outlier_columns: u64,
    pub ldq: i64,
    /// bytes of the workspace
    pub total: u64,
    /// AUTO resolved
    pub algorithm: i32,
    pub reserved: i32,
}

/// out = a * w^T in exact i32; k <= 133144.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_product_params {
    /// i8 `[m, k]` row-major, ld = lda; columns k..round_up(k,16) are 0; 16-byte aligned
    pub a: *const i8,
    /// i8 `[n, k]` row-major, ld = ldw; likewise
    pub w: *const i8,
    /// i32 `[m, n]` row-major, ld = ldo
    pub out: *mut i32,
    /// for CUBLASLT only; may be NULL
    pub workspace: *mut c_void,
    pub stream: int8_cuda_stream,
    pub workspace_bytes: usize,
    pub m: i64,
    pub n: i64,
    pub k: i64,
    /// elements; lda and ldw multiples of 16
    pub lda: i64,
    /// elements; lda and ldw multiples of 16
    pub ldw: i64,
    /// elements; lda and ldw multiples of 16
    pub ldo: i64,
    /// AUTO, MMA or CUBLASLT
    pub algorithm: i32,
    pub reserved: i32,
}

/// `values[r,k]` = (`codes[r,k]` - `z[r]`) * `s[r]` / 127, computed in f32, rounded once.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_dequantize_params {
    /// i8 `[rows, inner]` row-major, ld = ldq
    pub codes: *const i8,
    /// f32 `[rows]`
    pub scales: *const f32,
    /// i32 `[rows]`, or NULL: all 0
    pub zero_points: *const i32,
    /// f16|bf16|f32 `[rows, inner]` row-major, ld = ldv
    pub values: *mut c_void,
    pub stream: int8_cuda_stream,
    pub rows: i64,
    pub inner: i64,
    pub ldq: i64,
    pub ldv: i64,
    pub element: i32,
    pub reserved: i32,
}

/// dx = dy * dequantise(W), the input gradient: `dx[m,k]` = sum_n `dy[m,n]` * (`q[n,k]` - `z[n]`) * `s[n]` / 127.
/// f16 and bf16: dequantised weights rounded to the element type, sums in f32. f32: f32 throughout.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_gradient_params {
    /// f16|bf16|f32 `[m, n]` row-major, ld = lddy
    pub dy: *const c_void,
    /// i8 `[n, k]` row-major, ld = ldw
    pub weight: *const i8,
    /// f32 `[n]`
    pub weight_scales: *const f32,
    /// i32 `[n]`, or NULL: all 0
    pub weight_zero_points: *const i32,
    /// dy's element type `[m, k]` row-major, ld = lddx
    pub dx: *mut c_void,
    pub stream: int8_cuda_stream,
    pub m: i64,
    pub n: i64,
    pub k: i64,
    pub lddy: i64,
    pub ldw: i64,
    pub lddx: i64,
    pub element: i32,
    pub reserved: i32,
}

/// y = x * w^T in 16 bits by cuBLASLt: the baseline of the int8 layer's measurements. Every call queries the heuristic: capture
/// it in a graph where its host time matters.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_dense_params {
    /// f16|bf16 `[m, k]` row-major, contiguous
    pub x: *const c_void,
    /// f16|bf16 `[n, k]` row-major, contiguous
    pub w: *const c_void,
    /// f16|bf16 `[m, n]` row-major, contiguous
    pub y: *mut c_void,
    pub workspace: *mut c_void,
    pub stream: int8_cuda_stream,
    pub workspace_bytes: usize,
    pub m: i64,
    pub n: i64,
    pub k: i64,
    pub element: i32,
    /// index into the heuristic's list, best first
    pub candidate: i32,
}

// SAFETY of every call below: pointers are valid as the header says for the sizes given, and stay so until the stream has
// passed the call; a context is current on the calling thread.
unsafe extern "C" {
    pub fn int8_cuda_abi() -> i32;
    pub fn int8_cuda_abi_table(count: *mut usize) -> *const u64;
    pub fn int8_cuda_status_text(status: int8_cuda_status) -> *const c_char;
    pub fn int8_cuda_last_device_error() -> *const c_char;
    pub fn int8_cuda_get_device_info(info: *mut int8_cuda_device_info) -> int8_cuda_status;
    pub fn int8_cuda_quantize_workspace(
        params: *const int8_cuda_quantize_params,
        bytes: *mut usize,
    ) -> int8_cuda_status;
    pub fn int8_cuda_quantize(params: *const int8_cuda_quantize_params) -> int8_cuda_status;
    pub fn int8_cuda_prologue_workspace(
        params: *const int8_cuda_prologue_params,
        bytes: *mut usize,
    ) -> int8_cuda_status;
    pub fn int8_cuda_prologue(params: *const int8_cuda_prologue_params) -> int8_cuda_status;
    pub fn int8_cuda_gemm_workspace(
        params: *const int8_cuda_gemm_params,
        layout: *mut int8_cuda_gemm_layout,
    ) -> int8_cuda_status;
    pub fn int8_cuda_gemm(params: *const int8_cuda_gemm_params) -> int8_cuda_status;
    pub fn int8_cuda_linear_workspace(
        params: *const int8_cuda_linear_params,
        layout: *mut int8_cuda_linear_layout,
    ) -> int8_cuda_status;
    pub fn int8_cuda_linear(params: *const int8_cuda_linear_params) -> int8_cuda_status;
    pub fn int8_cuda_product(params: *const int8_cuda_product_params) -> int8_cuda_status;
    pub fn int8_cuda_dequantize(params: *const int8_cuda_dequantize_params) -> int8_cuda_status;
    pub fn int8_cuda_gradient(params: *const int8_cuda_gradient_params) -> int8_cuda_status;
    pub fn int8_cuda_dense_candidates(
        params: *const int8_cuda_dense_params,
        count: *mut i32,
    ) -> int8_cuda_status;
    pub fn int8_cuda_dense(params: *const int8_cuda_dense_params) -> int8_cuda_status;
}
