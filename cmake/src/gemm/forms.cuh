// The rows of int8_cuda_algorithms.h that are forms of a kernel, and the launch of each, compiled in a translation unit of its own.
#pragma once

#include "gemm/gemm.cuh"

// INT8_CUDA_FORM_ROW_WGMMA and _MMA(name, columns of its kind), which the user defines, for each of them.
#define INT8_CUDA_FORMS INT8_CUDA_ALGORITHMS(INT8_CUDA_FORM_ROW)
#define INT8_CUDA_FORM_ROW(name, number, rust, kind, text, ...) INT8_CUDA_FORM_ROW_##kind(name, __VA_ARGS__)
#define INT8_CUDA_FORM_ROW_GEMM(...)
#define INT8_CUDA_FORM_ROW_FUSED(...)
#define INT8_CUDA_FORM_ROW_PRODUCT(...)

namespace int8_cuda {

template <int kAlgorithm>
int8_cuda_status launch_form(const GemmParams &params, int element, cudaStream_t stream, bool overlap);

}  // namespace int8_cuda
