//! Arguments that the entry points refuse before they use a device. Needs the kernels linked, but no device.
#![allow(unsafe_code, reason = "calls C functions")]

use std::ptr::{null, null_mut};

use int8_cuda_sys::*;

/// A prologue of `[m, k]` f16 with the paper's rule, without buffers.
fn prologue(m: i64, k: i64) -> int8_cuda_prologue_params {
    int8_cuda_prologue_params {
        x: null(),
        workspace: null_mut(),
        stream: null_mut(),
        workspace_bytes: 0,
        ldx: k,
        granularity: INT8_CUDA_PER_ROW,
        outlier_granularity: INT8_CUDA_COLUMN,
        row_maximum: INT8_CUDA_MAXIMUM_PAPER,
        threshold: 6.0,
        activations: int8_cuda_activations {
            codes: null_mut(),
            scales: null_mut(),
            zero_points: null_mut(),
            code_sums: null_mut(),
            outlier_count: null_mut(),
            outlier_columns: null_mut(),
            outlier_values: null_mut(),
            m,
            k,
            ldq: (k + 15) / 16 * 16,
            element: INT8_CUDA_F16,
            encoding: INT8_CUDA_ABSMAX,
            rule: INT8_CUDA_RULE_ABSOLUTE,
            reserved: 0,
        },
    }
}

fn workspace(params: &int8_cuda_prologue_params) -> Result<usize, i32> {
    let mut bytes = 0;
    // SAFETY: the function reads sizes and settings only and writes the size.
    match unsafe { int8_cuda_prologue_workspace(params, &raw mut bytes) } {
        INT8_CUDA_OK => Ok(bytes),
        status => Err(status),
    }
}

#[test]
fn a_prologue_workspace_grows_with_rows() {
    let bytes = |m| workspace(&prologue(m, 1000)).expect("valid sizes");
    assert!(bytes(0) > 0 && bytes(0) <= bytes(1) && bytes(1) <= bytes(4096));
    assert_eq!(bytes(4096) % 256, 0);
    let mut relative = prologue(4096, 1000);
    relative.activations.rule = INT8_CUDA_RULE_MEDIAN;
    assert!(workspace(&relative).expect("valid sizes") >= bytes(4096) + 4 * 4096, "a threshold a row");
}

#[test]
fn invalid_settings_are_refused() {
    let valid = prologue(8, 64);
    let mut cases = Vec::new();
    let changes: [fn(&mut int8_cuda_prologue_params); 10] = [
        |p| p.activations.m = -1,
        |p| p.activations.k = 133_145,
        |p| p.threshold = 0.0,
        |p| p.threshold = f32::NAN,
        |p| p.granularity = -1,
        |p| p.outlier_granularity = 2,
        |p| p.row_maximum = 2,
        |p| p.activations.element = 3,
        |p| p.activations.encoding = 2,
        |p| p.activations.rule = 4,
    ];
    for change in changes {
        let mut params = valid;
        change(&mut params);
        cases.push((workspace(&params), params));
    }
    let accepted: Vec<_> = cases.iter().filter(|(status, _)| *status != Err(INT8_CUDA_INVALID)).collect();
    assert!(accepted.is_empty(), "{accepted:?}");
    let mut without = valid;
    (without.activations.rule, without.threshold) = (INT8_CUDA_RULE_NONE, 0.0);
    assert!(workspace(&without).is_ok(), "without a rule the threshold does not count");
}

#[test]
fn missing_pointers_and_workspaces_are_refused() {
    let mut params = prologue(8, 64);
    let run = |params: &int8_cuda_prologue_params| {
        // SAFETY: refused before any pointer is used.
        unsafe { int8_cuda_prologue(params) }
    };
    assert_eq!(run(&params), INT8_CUDA_INVALID, "no buffers");
    let somewhere = 4096 as *mut std::ffi::c_void;
    params.x = somewhere;
    params.activations.codes = somewhere.cast();
    params.activations.scales = somewhere.cast();
    assert_eq!(run(&params), INT8_CUDA_INVALID, "no buffers for outliers");
    params.activations.outlier_count = somewhere.cast();
    params.activations.outlier_columns = somewhere.cast();
    params.activations.outlier_values = somewhere.cast();
    assert_eq!(run(&params), INT8_CUDA_WORKSPACE);
    params.activations.encoding = INT8_CUDA_ZEROPOINT;
    assert_eq!(run(&params), INT8_CUDA_INVALID, "no zero points");
    params.activations.encoding = INT8_CUDA_ABSMAX;
    params.activations.ldq = 128;
    assert_eq!(run(&params), INT8_CUDA_INVALID, "ldq is k rounded up to 16");
    params.activations.m = 0;
    assert_eq!(run(&params), INT8_CUDA_OK, "no rows, no work");
}

#[test]
fn null_parameters_are_refused() {
    // SAFETY: null is what is checked.
    let statuses = unsafe {
        [
            int8_cuda_prologue(null()),
            int8_cuda_prologue_workspace(null(), null_mut()),
            int8_cuda_gemm(null()),
            int8_cuda_gemm_workspace(null(), null_mut()),
            int8_cuda_linear(null()),
            int8_cuda_linear_workspace(null(), null_mut()),
            int8_cuda_quantize(null()),
            int8_cuda_quantize_workspace(null(), null_mut()),
            int8_cuda_product(null()),
            int8_cuda_dequantize(null()),
            int8_cuda_gradient(null()),
            int8_cuda_dense(null()),
            int8_cuda_dense_candidates(null(), null_mut()),
            int8_cuda_get_device_info(null_mut()),
        ]
    };
    assert_eq!(statuses, [INT8_CUDA_INVALID; 14]);
}
