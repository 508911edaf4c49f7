// The epilogue's last step: y in x's element type T, or in f32.
#pragma once

#include "common/types.cuh"

namespace int8_cuda {

template <typename T>
__device__ __forceinline__ float load_y(const void *y, int y_is_f32, int64_t index) {
  return y_is_f32 ? static_cast<const float *>(y)[index] : to_f32(static_cast<const T *>(y)[index]);
}

template <typename T>
__device__ __forceinline__ void store_y(void *y, int y_is_f32, int64_t index, float value) {
  if (y_is_f32) {
    static_cast<float *>(y)[index] = value;
  } else {
    static_cast<T *>(y)[index] = from_f32<T>(value);
  }
}

}  // namespace int8_cuda
