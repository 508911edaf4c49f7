// (q - z) * s / 127: weights as values.
#pragma once

#include "common/status.cuh"
#include "common/types.cuh"

namespace int8_cuda {

__device__ __forceinline__ float dequantized(const int8_t *codes, const float *scales, const int32_t *zeros, int64_t ld, int row, int k) {
  const int zero = zeros != nullptr ? zeros[row] : 0;
  return static_cast<float>(codes[row * ld + k] - zero) * (scales[row] * (1.0f / 127.0f));
}

int8_cuda_status launch_dequantize(const int8_cuda_dequantize_params &params);

}  // namespace int8_cuda
