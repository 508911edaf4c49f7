// What all kernels share: element types, the status of a launch, programmatic dependent launch, warp reductions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "int8_cuda.h"

namespace int8_cuda {

// Remembers a CUDA error of this thread and turns it into a status.
int8_cuda_status device_status(cudaError_t error);
int8_cuda_status driver_status(int error);

#define INT8_CUDA_TRY(expression)                                   \
  do {                                                              \
    const cudaError_t error_ = (expression);                        \
    if (error_ != cudaSuccess) return ::int8_cuda::device_status(error_); \
  } while (0)

#define INT8_CUDA_PASS(expression)                          \
  do {                                                      \
    const int8_cuda_status status_ = (expression);          \
    if (status_ != INT8_CUDA_OK) return status_;            \
  } while (0)

template <typename T>
__host__ __device__ constexpr T ceil_div(T a, T b) { return (a + b - 1) / b; }
template <typename T>
__host__ __device__ constexpr T round_up(T a, T b) { return ceil_div(a, b) * b; }

// Properties of the current device that kernels are chosen by; read once a device, then cached.
struct Device {
  int major, minor, multiprocessors;
};
int8_cuda_status current_device(Device *device);

__device__ __forceinline__ float to_f32(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_f32(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_f32(float v) { return v; }

template <typename T>
__device__ __forceinline__ T from_f32(float v);
template <>
__device__ __forceinline__ __half from_f32<__half>(float v) { return __float2half_rn(v); }
template <>
__device__ __forceinline__ __nv_bfloat16 from_f32<__nv_bfloat16>(float v) { return __float2bfloat16_rn(v); }
template <>
__device__ __forceinline__ float from_f32<float>(float v) { return v; }

// Two neighbours of one row, rounded and packed; `low` has the lower column.
template <typename T>
__device__ __forceinline__ uint32_t pack2(float low, float high) {
  T pair[2] = {from_f32<T>(low), from_f32<T>(high)};
  return *reinterpret_cast<uint32_t *>(pair);
}

// Programmatic dependent launch (sm_90): a kernel may start while its predecessor still runs, and waits for its end, and so
// for the end of all before it, here. Every kernel lets its successor start first thing: that one becomes resident only
// once all blocks of this one are, and until its own wait it touches nothing but weights. One exception: the row pass takes
// tickets from its state before its wait, so a wgmma kernel, which zeroes that state, has its first block do so beforehand.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void let_successor_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// A launch configuration. `overlap`: the kernel calls wait_for_predecessor() before it reads what that one wrote.
struct Launch {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attributes[2]{};
  Launch(dim3 grid, dim3 block, size_t shared, cudaStream_t stream, bool overlap, int cluster = 1) {
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = attributes;
    if (overlap) {
      attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
      attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes[config.numAttrs].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
      ++config.numAttrs;
    }
  }
};

// Raises a kernel's limit of dynamic shared memory (48 KB by default). Always to the same for a kernel: other threads may be
// launching it.
template <typename Kernel>
cudaError_t allow_shared(Kernel kernel, size_t bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

// Where element (row, j) of a compact outlier operand with `rows` rows lies: panels of 64 columns, each row-major. Few
// columns of a wide row-major matrix would all fall into the same few sets of the L2 cache.
__host__ __device__ __forceinline__ int64_t outlier_index(int64_t rows, int64_t row, int64_t j) {
  return (j / 64 * rows + row) * 64 + j % 64;
}

// What the columns of W that meet outliers are multiplied with.
struct OutlierWeights {
  const int8_t *codes;        // i8 [n, k], ld = ldw
  const float *scales;        // f32 [n]
  const int32_t *zero_points; // i32 [n] or null
  const void *exact;          // T, element (n, c) at n*stride_n + c*stride_c, or null
  const int32_t *exact_index; // i32 [k] or null
  int64_t ldw, stride_n, stride_c;
};

// The value of W[n, k] in f32: exact where kept, else dequantised.
template <typename T>
__device__ __forceinline__ float outlier_weight(const OutlierWeights &w, int64_t n, int k) {
  if (w.exact != nullptr) {
    const int c = w.exact_index != nullptr ? w.exact_index[k] : k;
    if (c >= 0) return to_f32(static_cast<const T *>(w.exact)[n * w.stride_n + c * w.stride_c]);
  }
  const int zero = w.zero_points != nullptr ? w.zero_points[n] : 0;
  return static_cast<float>(w.codes[n * w.ldw + k] - zero) * (w.scales[n] * (1.0f / 127.0f));
}

// The zero-point correction: sum (qa - za)(qw - zw) = acc - zw*sum(qa) - za*sum(qw) + k*za*zw.
// It needs 64 bits once k * 254^2 can exceed 2^31.
__device__ __forceinline__ float corrected(int32_t acc, int32_t za, int32_t sum_a, int32_t zw, int32_t sum_w, int32_t k) {
  if (k <= 33000) {
    // Wraps on the way, exact at the end.
    const uint32_t sum = static_cast<uint32_t>(acc) - static_cast<uint32_t>(zw) * static_cast<uint32_t>(sum_a) -
                         static_cast<uint32_t>(za) * static_cast<uint32_t>(sum_w) +
                         static_cast<uint32_t>(k) * static_cast<uint32_t>(za * zw);
    return static_cast<float>(static_cast<int32_t>(sum));
  }
  const int64_t sum = static_cast<int64_t>(acc) - static_cast<int64_t>(zw) * sum_a - static_cast<int64_t>(za) * sum_w +
                      static_cast<int64_t>(k) * (za * zw);
  return static_cast<float>(sum);
}

}  // namespace int8_cuda
