//! The kernels' parameter structs with sizes and settings alone; whoever calls a kernel fills in its operands. And the sizes of
//! workspaces, which depend on nothing else.

use int8_core::Config;
use int8_cuda_sys as sys;

use crate::algorithm::{Algorithm, Shape};
use crate::convert;
use crate::error::{Error, check};
use crate::matrix::Buffer;
use crate::settings::Settings;
use crate::weight::RawWeight;

/// The function that leaves a row as it is.
pub(crate) fn identity() -> sys::int8_cuda_transform {
    sys::int8_cuda_transform {
        gain: std::ptr::null(),
        bias: std::ptr::null(),
        function: sys::INT8_CUDA_IDENTITY,
        activation: 0,
        eps: 0.0,
        factor: 1.0,
        cap: 0.0,
        reserved: 0,
    }
}

/// Activations `[m, k]` of this element type.
pub(crate) fn activations(
    element: i32,
    m: usize,
    k: usize,
    settings: &Settings,
) -> sys::int8_cuda_activations {
    sys::int8_cuda_activations {
        codes: std::ptr::null_mut(),
        scales: std::ptr::null_mut(),
        zero_points: std::ptr::null_mut(),
        code_sums: std::ptr::null_mut(),
        outlier_count: std::ptr::null_mut(),
        outlier_columns: std::ptr::null_mut(),
        outlier_values: std::ptr::null_mut(),
        m: convert::size(m),
        k: convert::size(k),
        ldq: convert::size(k.next_multiple_of(16)),
        element,
        encoding: settings.encoding,
        rule: settings.rule,
        reserved: 0,
    }
}

/// The prologue of contiguous rows into `activations`.
pub(crate) fn prologue(
    settings: &Settings,
    activations: sys::int8_cuda_activations,
) -> sys::int8_cuda_prologue_params {
    sys::int8_cuda_prologue_params {
        x: std::ptr::null(),
        workspace: std::ptr::null_mut(),
        stream: std::ptr::null_mut(),
        workspace_bytes: 0,
        ldx: activations.k,
        granularity: settings.granularity,
        outlier_granularity: settings.outlier_granularity,
        row_maximum: settings.row_maximum,
        threshold: settings.threshold,
        activations,
    }
}

/// GEMM and epilogue; x and y of this element type, y contiguous and overwritten.
pub(crate) fn gemm(
    element: i32,
    shape: Shape,
    config: &Config,
    algorithm: Algorithm,
) -> sys::int8_cuda_gemm_params {
    sys::int8_cuda_gemm_params {
        weight: std::ptr::null(),
        weight_scales: std::ptr::null(),
        weight_zero_points: std::ptr::null(),
        weight_code_sums: std::ptr::null(),
        exact: std::ptr::null(),
        exact_index: std::ptr::null(),
        bias: std::ptr::null(),
        y: std::ptr::null_mut(),
        workspace: std::ptr::null_mut(),
        stream: std::ptr::null_mut(),
        workspace_bytes: 0,
        n: convert::size(shape.n),
        ldw: convert::size(shape.k.next_multiple_of(16)),
        ldy: convert::size(shape.n),
        exact_stride_n: 0,
        exact_stride_c: 0,
        algorithm: algorithm.raw(),
        store: sys::INT8_CUDA_OVERWRITE,
        y_element: element,
        reserved: 0,
        activations: activations(element, shape.m, shape.k, &Settings::of(config)),
    }
}

/// All three stages; x and y contiguous and of this element type, x as it is, y overwritten.
pub(crate) fn linear(
    element: i32,
    shape: Shape,
    config: &Config,
    algorithm: Algorithm,
) -> sys::int8_cuda_linear_params {
    let settings = Settings::of(config);
    sys::int8_cuda_linear_params {
        x: std::ptr::null(),
        weight: std::ptr::null(),
        weight_scales: std::ptr::null(),
        weight_zero_points: std::ptr::null(),
        weight_code_sums: std::ptr::null(),
        exact: std::ptr::null(),
        exact_index: std::ptr::null(),
        bias: std::ptr::null(),
        y: std::ptr::null_mut(),
        workspace: std::ptr::null_mut(),
        stream: std::ptr::null_mut(),
        workspace_bytes: 0,
        m: convert::size(shape.m),
        n: convert::size(shape.n),
        k: convert::size(shape.k),
        ldx: convert::size(shape.k),
        ldw: convert::size(shape.k.next_multiple_of(16)),
        ldy: convert::size(shape.n),
        exact_stride_n: 0,
        exact_stride_c: 0,
        element,
        encoding: settings.encoding,
        granularity: settings.granularity,
        rule: settings.rule,
        outlier_granularity: settings.outlier_granularity,
        row_maximum: settings.row_maximum,
        threshold: settings.threshold,
        algorithm: algorithm.raw(),
        store: sys::INT8_CUDA_OVERWRITE,
        y_element: element,
        x_element: element,
        reserved: 0,
        transform: identity(),
    }
}

/// Fills in a weight and its bias, in the fields that both structs name alike.
macro_rules! set_weight {
    ($params:expr, $weight:expr, $bias:expr) => {{
        let (params, weight) = ($params, $weight);
        params.weight = weight.codes;
        params.weight_scales = weight.scales;
        params.weight_zero_points = weight.zero_points;
        params.weight_code_sums = weight.code_sums;
        params.exact = weight.exact;
        params.exact_index = weight.exact_index;
        params.exact_stride_n = weight.exact_strides.0;
        params.exact_stride_c = weight.exact_strides.1;
        params.ldw = weight.ld;
        params.bias = Buffer::pointer_or_null($bias);
    }};
}

/// The weight of a GEMM.
pub(crate) fn set_gemm_weight(
    params: &mut sys::int8_cuda_gemm_params,
    weight: &RawWeight,
    bias: Option<&Buffer<f32>>,
) {
    set_weight!(params, weight, bias);
}

/// The weight of a linear layer.
pub(crate) fn set_linear_weight(
    params: &mut sys::int8_cuda_linear_params,
    weight: &RawWeight,
    bias: Option<&Buffer<f32>>,
) {
    set_weight!(params, weight, bias);
}

/// Bytes of the prologue's workspace.
pub(crate) fn prologue_bytes(
    params: &sys::int8_cuda_prologue_params,
    operation: &'static str,
    shape: impl FnOnce() -> String,
) -> Result<usize, Error> {
    let mut bytes = 0;
    // SAFETY: the function reads sizes and settings only.
    let status = unsafe { sys::int8_cuda_prologue_workspace(params, &raw mut bytes) };
    check(operation, status, shape)?;
    Ok(bytes)
}

/// Workspace and algorithm of a GEMM.
pub(crate) fn gemm_layout(
    params: &sys::int8_cuda_gemm_params,
    operation: &'static str,
    shape: impl FnOnce() -> String,
) -> Result<sys::int8_cuda_gemm_layout, Error> {
    let mut layout = sys::int8_cuda_gemm_layout { total: 0, algorithm: 0, reserved: 0 };
    // SAFETY: the function reads sizes and settings and fills the layout.
    let status = unsafe { sys::int8_cuda_gemm_workspace(params, &raw mut layout) };
    check(operation, status, shape)?;
    Ok(layout)
}

/// Workspace and algorithm of a linear layer.
pub(crate) fn linear_layout(
    params: &sys::int8_cuda_linear_params,
    operation: &'static str,
    shape: impl FnOnce() -> String,
) -> Result<sys::int8_cuda_linear_layout, Error> {
    let mut layout = std::mem::MaybeUninit::<sys::int8_cuda_linear_layout>::zeroed();
    // SAFETY: the function reads sizes and settings and fills the layout.
    let status = unsafe { sys::int8_cuda_linear_workspace(params, layout.as_mut_ptr()) };
    check(operation, status, shape)?;
    // SAFETY: zeroed, then filled; all bit patterns are valid.
    Ok(unsafe { layout.assume_init() })
}
