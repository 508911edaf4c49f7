// The operands of the outlier product, shared by the prologue, which can make both, and the GEMM stage.
#pragma once

#include "common/types.cuh"

namespace int8_cuda {

// Where element (row, j) of a compact outlier operand with `rows` rows lies: panels of 64 columns, each row-major. A few
// columns of a wide row-major matrix would all fall into the same sets of the L2 cache.
__host__ __device__ __forceinline__ int64_t outlier_index(int64_t rows, int64_t row, int64_t j) {
  return (j / 64 * rows + row) * 64 + j % 64;
}

// The columns of W that outlier columns of x are multiplied with.
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

}  // namespace int8_cuda
