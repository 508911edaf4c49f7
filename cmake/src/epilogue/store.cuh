// The epilogue's last step: y in x's element type T, or in f32.
#pragma once

#include "gemm/gemm.cuh"

namespace int8_cuda {

template <typename T>
__device__ __forceinline__ float load_y(const GemmParams &p, int64_t index) {
  return p.y_is_f32 ? static_cast<const float *>(p.y)[index] : to_f32(static_cast<const T *>(p.y)[index]);
}

template <typename T>
__device__ __forceinline__ void store_y(const GemmParams &p, int64_t index, float value) {
  if (p.y_is_f32) {
    static_cast<float *>(p.y)[index] = value;
  } else {
    static_cast<T *>(p.y)[index] = from_f32<T>(value);
  }
}

}  // namespace int8_cuda
