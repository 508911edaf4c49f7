//! `int8_cuda_model.h` in Rust: the operations of a transformer around its int8 layers.

use std::ffi::c_void;

use crate::{int8_cuda_status, int8_cuda_stream};

pub const INT8_CUDA_IDENTITY: i32 = 0;
pub const INT8_CUDA_RMS_NORM: i32 = 1;
pub const INT8_CUDA_LAYER_NORM: i32 = 2;
pub const INT8_CUDA_ACTIVATION: i32 = 3;
pub const INT8_CUDA_GATED: i32 = 4;
pub const INT8_CUDA_SCALE: i32 = 5;
pub const INT8_CUDA_RELU: i32 = 0;
pub const INT8_CUDA_GELU: i32 = 1;
pub const INT8_CUDA_GELU_TANH: i32 = 2;
pub const INT8_CUDA_SILU: i32 = 3;
pub const INT8_CUDA_PAGE_POSITIONS: usize = 64;
pub const INT8_CUDA_CAUSAL: i32 = 0;
pub const INT8_CUDA_FULL: i32 = 1;

/// A function of rows.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_transform {
    /// f32 `[k]` of the norms
    pub gain: *const f32,
    /// f32 `[k]` of LAYER_NORM, or NULL
    pub bias: *const f32,
    pub function: i32,
    pub activation: i32,
    pub eps: f32,
    pub factor: f32,
    pub cap: f32,
    pub reserved: i32,
}

/// y (+)= f(x). y may be x where both have one element type and width.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_transform_params {
    /// f16|bf16|f32 `[rows, groups * k]`, of GATED `[rows, 2k]`, row-major, ld = ldx
    pub x: *const c_void,
    /// f16|bf16|f32 `[rows, groups * k]` row-major, ld = ldy
    pub y: *mut c_void,
    pub stream: int8_cuda_stream,
    pub rows: i64,
    pub k: i64,
    pub groups: i64,
    pub ldx: i64,
    pub ldy: i64,
    pub x_element: i32,
    pub y_element: i32,
    pub store: i32,
    pub reserved: i32,
    pub transform: int8_cuda_transform,
}

/// `out[r]` (+)= `table[index[r] + offset]` (+ `second[second_index[r] + second_offset]`).
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_gather_params {
    pub table: *const c_void,
    pub index: *const i32,
    pub second: *const c_void,
    pub second_index: *const i32,
    /// f32 `[rows, width]`
    pub out: *mut f32,
    pub stream: int8_cuda_stream,
    pub rows: i64,
    pub width: i64,
    pub offset: i64,
    pub second_offset: i64,
    pub element: i32,
    pub second_element: i32,
    pub store: i32,
    pub reserved: i32,
}

/// `out[index[r]]` += `weights[r]` * `x[r]`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_scatter_add_params {
    /// f32 `[rows, width]`
    pub x: *const f32,
    /// i32 `[rows]`
    pub index: *const i32,
    /// f32 `[rows]`
    pub weights: *const f32,
    /// f32 `[.., width]`
    pub out: *mut f32,
    pub stream: int8_cuda_stream,
    pub rows: i64,
    pub width: i64,
}

/// Keys and values in pages of [`INT8_CUDA_PAGE_POSITIONS`] positions.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_kv_cache {
    /// T `[layers][pages][2][kv_heads][64][head_size]`
    pub data: *mut c_void,
    /// i32 `[sequences][sequence_pages]`
    pub page_table: *const i32,
    /// i32 `[sequences]`
    pub lengths: *mut i32,
    /// u32 `[1]`
    pub overflow: *mut u32,
    pub layers: i64,
    pub pages: i64,
    pub sequence_pages: i64,
    pub kv_heads: i32,
    pub head_size: i32,
    pub element: i32,
    pub reserved: i32,
}

/// The rows of a forward.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_batch {
    /// i32 `[rows]`
    pub positions: *const i32,
    /// i32 `[rows]`
    pub sequences: *const i32,
    /// i32 `[segments + 1]`
    pub segment_starts: *const i32,
    /// i32 `[segments]`
    pub segment_sequences: *const i32,
    pub rows: i64,
    pub segments: i64,
}

/// Rotates queries and keys in place, then writes keys and values to the cache, and the sequences' lengths.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_append_kv_params {
    pub qkv: *mut c_void,
    /// f32 `[positions, half]`, or NULL
    pub cos: *const f32,
    pub sin: *const f32,
    pub stream: int8_cuda_stream,
    pub ld: i64,
    pub layer: i64,
    pub heads: i32,
    pub half: i32,
    pub element: i32,
    pub reserved: i32,
    pub cache: int8_cuda_kv_cache,
    pub batch: int8_cuda_batch,
}

/// out = softmax(scores) * V; the header has the formula.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_attention_params {
    pub q: *const c_void,
    pub out: *mut c_void,
    pub slopes: *const f32,
    pub distance_bias: *const f32,
    pub workspace: *mut c_void,
    pub stream: int8_cuda_stream,
    pub workspace_bytes: usize,
    pub ldq: i64,
    pub ldo: i64,
    pub layer: i64,
    pub window: i64,
    pub reach: i64,
    pub heads: i32,
    pub mask: i32,
    pub q_element: i32,
    pub out_element: i32,
    pub scale: f32,
    pub softcap: f32,
    pub cache: int8_cuda_kv_cache,
    pub batch: int8_cuda_batch,
}

/// y (+)= x * w^T + bias in floating point.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_float_linear_params {
    pub x: *const c_void,
    pub w: *const c_void,
    pub bias: *const f32,
    pub y: *mut c_void,
    pub workspace: *mut c_void,
    pub stream: int8_cuda_stream,
    pub workspace_bytes: usize,
    pub m: i64,
    pub n: i64,
    pub k: i64,
    pub ldx: i64,
    pub ldy: i64,
    pub element: i32,
    pub y_element: i32,
    pub store: i32,
    pub reserved: i32,
}

/// How the next token of a row is chosen.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct int8_cuda_sampler {
    pub uniform: f64,
    pub temperature: f32,
    pub top_p: f32,
    pub top_k: i32,
    pub reserved: i32,
}

/// The next token of each row of logits.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct int8_cuda_sample_params {
    /// f32 `[rows, vocabulary]`
    pub logits: *const f32,
    pub samplers: *const int8_cuda_sampler,
    /// i32 `[rows]`
    pub tokens: *mut i32,
    pub workspace: *mut c_void,
    pub stream: int8_cuda_stream,
    pub workspace_bytes: usize,
    pub rows: i64,
    pub vocabulary: i64,
    pub ld: i64,
}

// SAFETY of every call below: pointers are valid as the header says for the sizes given, and stay so until the stream has
// passed the call; a context is current on the calling thread.
unsafe extern "C" {
    pub fn int8_cuda_apply_transform(params: *const int8_cuda_transform_params) -> int8_cuda_status;
    pub fn int8_cuda_gather(params: *const int8_cuda_gather_params) -> int8_cuda_status;
    pub fn int8_cuda_scatter_add(params: *const int8_cuda_scatter_add_params) -> int8_cuda_status;
    pub fn int8_cuda_append_kv(params: *const int8_cuda_append_kv_params) -> int8_cuda_status;
    pub fn int8_cuda_attention_workspace(
        params: *const int8_cuda_attention_params,
        bytes: *mut usize,
    ) -> int8_cuda_status;
    pub fn int8_cuda_attention(params: *const int8_cuda_attention_params) -> int8_cuda_status;
    pub fn int8_cuda_append_and_attend(
        append: *const int8_cuda_append_kv_params,
        attention: *const int8_cuda_attention_params,
    ) -> int8_cuda_status;
    pub fn int8_cuda_float_linear(params: *const int8_cuda_float_linear_params) -> int8_cuda_status;
    pub fn int8_cuda_sample_workspace(
        params: *const int8_cuda_sample_params,
        bytes: *mut usize,
    ) -> int8_cuda_status;
    pub fn int8_cuda_sample(params: *const int8_cuda_sample_params) -> int8_cuda_status;
}
