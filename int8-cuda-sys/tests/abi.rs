//! Sizes and offsets of every struct are equal to the C++ compiler's. Needs the kernels linked, but no device.
#![allow(unsafe_code, reason = "calls C functions")]

use std::mem::{offset_of, size_of};

use int8_cuda_sys as sys;

#[test]
fn structs_are_laid_out_as_in_c() {
    use sys::*;
    let rust = [
        size_of::<int8_cuda_device_info>(),
        offset_of!(int8_cuda_device_info, l2_bytes),
        offset_of!(int8_cuda_device_info, name),
        size_of::<int8_cuda_quantize_params>(),
        offset_of!(int8_cuda_quantize_params, stream),
        offset_of!(int8_cuda_quantize_params, rows),
        offset_of!(int8_cuda_quantize_params, element),
        offset_of!(int8_cuda_quantize_params, threshold),
        size_of::<int8_cuda_linear_params>(),
        offset_of!(int8_cuda_linear_params, exact),
        offset_of!(int8_cuda_linear_params, stream),
        offset_of!(int8_cuda_linear_params, m),
        offset_of!(int8_cuda_linear_params, exact_stride_c),
        offset_of!(int8_cuda_linear_params, element),
        offset_of!(int8_cuda_linear_params, threshold),
        offset_of!(int8_cuda_linear_params, algorithm),
        offset_of!(int8_cuda_linear_params, store),
        offset_of!(int8_cuda_linear_params, y_element),
        offset_of!(int8_cuda_linear_params, transform),
        size_of::<int8_cuda_activations>(),
        offset_of!(int8_cuda_activations, outlier_values),
        offset_of!(int8_cuda_activations, ldq),
        offset_of!(int8_cuda_activations, rule),
        size_of::<int8_cuda_prologue_params>(),
        offset_of!(int8_cuda_prologue_params, ldx),
        offset_of!(int8_cuda_prologue_params, threshold),
        offset_of!(int8_cuda_prologue_params, activations),
        size_of::<int8_cuda_gemm_params>(),
        offset_of!(int8_cuda_gemm_params, y),
        offset_of!(int8_cuda_gemm_params, n),
        offset_of!(int8_cuda_gemm_params, store),
        offset_of!(int8_cuda_gemm_params, y_element),
        offset_of!(int8_cuda_gemm_params, activations),
        size_of::<int8_cuda_gemm_layout>(),
        offset_of!(int8_cuda_gemm_layout, algorithm),
        size_of::<int8_cuda_linear_layout>(),
        offset_of!(int8_cuda_linear_layout, outlier_columns),
        offset_of!(int8_cuda_linear_layout, ldq),
        offset_of!(int8_cuda_linear_layout, algorithm),
        size_of::<int8_cuda_product_params>(),
        offset_of!(int8_cuda_product_params, stream),
        offset_of!(int8_cuda_product_params, m),
        offset_of!(int8_cuda_product_params, algorithm),
        size_of::<int8_cuda_dequantize_params>(),
        offset_of!(int8_cuda_dequantize_params, stream),
        offset_of!(int8_cuda_dequantize_params, element),
        size_of::<int8_cuda_gradient_params>(),
        offset_of!(int8_cuda_gradient_params, dx),
        offset_of!(int8_cuda_gradient_params, element),
        size_of::<int8_cuda_dense_params>(),
        offset_of!(int8_cuda_dense_params, m),
        offset_of!(int8_cuda_dense_params, candidate),
        size_of::<int8_cuda_transform>(),
        offset_of!(int8_cuda_transform, function),
        offset_of!(int8_cuda_transform, reserved),
        size_of::<int8_cuda_transform_params>(),
        offset_of!(int8_cuda_transform_params, rows),
        offset_of!(int8_cuda_transform_params, x_element),
        offset_of!(int8_cuda_transform_params, transform),
        size_of::<int8_cuda_gather_params>(),
        offset_of!(int8_cuda_gather_params, out),
        offset_of!(int8_cuda_gather_params, offset),
        offset_of!(int8_cuda_gather_params, store),
        size_of::<int8_cuda_scatter_add_params>(),
        offset_of!(int8_cuda_scatter_add_params, rows),
        size_of::<int8_cuda_kv_cache>(),
        offset_of!(int8_cuda_kv_cache, layers),
        offset_of!(int8_cuda_kv_cache, kv_heads),
        offset_of!(int8_cuda_kv_cache, element),
        size_of::<int8_cuda_batch>(),
        offset_of!(int8_cuda_batch, segment_starts),
        offset_of!(int8_cuda_batch, rows),
        size_of::<int8_cuda_append_kv_params>(),
        offset_of!(int8_cuda_append_kv_params, ld),
        offset_of!(int8_cuda_append_kv_params, heads),
        offset_of!(int8_cuda_append_kv_params, cache),
        offset_of!(int8_cuda_append_kv_params, batch),
        size_of::<int8_cuda_attention_params>(),
        offset_of!(int8_cuda_attention_params, ldq),
        offset_of!(int8_cuda_attention_params, heads),
        offset_of!(int8_cuda_attention_params, softcap),
        offset_of!(int8_cuda_attention_params, cache),
        offset_of!(int8_cuda_attention_params, batch),
        size_of::<int8_cuda_float_linear_params>(),
        offset_of!(int8_cuda_float_linear_params, m),
        offset_of!(int8_cuda_float_linear_params, element),
        offset_of!(int8_cuda_float_linear_params, store),
        size_of::<int8_cuda_sampler>(),
        offset_of!(int8_cuda_sampler, temperature),
        offset_of!(int8_cuda_sampler, top_k),
        size_of::<int8_cuda_sample_params>(),
        offset_of!(int8_cuda_sample_params, tokens),
        offset_of!(int8_cuda_sample_params, rows),
        offset_of!(int8_cuda_sample_params, ld),
    ];
    let mut count = 0;
    // SAFETY: the function writes the count and returns a static table of that length.
    let c = unsafe {
        let table = int8_cuda_abi_table(&raw mut count);
        std::slice::from_raw_parts(table, count)
    };
    let c: Vec<usize> = c.iter().map(|value| usize::try_from(*value).expect("an offset")).collect();
    assert_eq!(rust.as_slice(), c.as_slice());
    // SAFETY: takes nothing, returns a constant.
    assert_eq!(unsafe { int8_cuda_abi() }, INT8_CUDA_ABI);
}
