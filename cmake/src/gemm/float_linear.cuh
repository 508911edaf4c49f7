// y (+)= x * w^T + bias in floating point: a kernel for few rows, cuBLASLt, and tiles for any shape.
#pragma once

#include "common/status.cuh"
#include "int8_cuda_model.h"

#ifdef __CUDACC__
#include "common/launch.cuh"
#include "common/rows.cuh"
#endif

namespace int8_cuda {

// Largest m of the kernel for few rows.
constexpr int64_t kFloatGemvM = 8;
int8_cuda_status launch_float_gemv(const int8_cuda_float_linear_params &params, int multiprocessors, bool overlap);
// The same, and the same bits, by bulk copies: 16-bit types on sm_90.
bool float_gemv_tma_supports(const int8_cuda_float_linear_params &params, const Device &device);
int8_cuda_status launch_float_gemv_tma(const int8_cuda_float_linear_params &params, const Device &device);
// Any shape, without workspace: what cuBLASLt computes where it is found.
int8_cuda_status launch_float_tiles(const int8_cuda_float_linear_params &params);
// UNSUPPORTED without the library, or where it has no algorithm.
int8_cuda_status cublaslt_linear(const int8_cuda_float_linear_params &params);
// to[i] = from[i] in element type f16|bf16.
int8_cuda_status launch_round(const float *from, void *to, int64_t count, int element, cudaStream_t stream, bool overlap);

#ifdef __CUDACC__
// One value of an element type known at run time.
__device__ __forceinline__ float load_element(const void *base, int64_t index, int element) {
  switch (element) {
    case INT8_CUDA_F16: return to_f32(static_cast<const __half *>(base)[index]);
    case INT8_CUDA_BF16: return to_f32(static_cast<const __nv_bfloat16 *>(base)[index]);
    default: return static_cast<const float *>(base)[index];
  }
}
__device__ __forceinline__ void store_element(void *base, int64_t index, int element, float value) {
  switch (element) {
    case INT8_CUDA_F16: static_cast<__half *>(base)[index] = from_f32<__half>(value); break;
    case INT8_CUDA_BF16: static_cast<__nv_bfloat16 *>(base)[index] = from_f32<__nv_bfloat16>(value); break;
    default: static_cast<float *>(base)[index] = value;
  }
}
#endif

}  // namespace int8_cuda
