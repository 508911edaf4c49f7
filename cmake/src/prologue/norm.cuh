// Norms of a row. A sum over a row has one order in every kernel, so that a row's result does not depend on how many rows
// there are: thread t of 256 adds runs t, t + 256, .. of eight columns in order; the lanes of a warp add by halves; the
// warps' sums are added in order.
#pragma once

#include "common/rows.cuh"

namespace int8_cuda {

constexpr int kNormThreads = 256;

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

__device__ __forceinline__ float norm_factor(float squares, int k, float eps) { return 1.0f / sqrtf(squares / static_cast<float>(k) + eps); }

__device__ __forceinline__ void normalise(float (&v)[kRun], float mean, float factor, const float (&gain)[kRun], const float (&bias)[kRun]) {
#pragma unroll
  for (int i = 0; i < kRun; ++i) v[i] = (v[i] - mean) * factor * gain[i] + bias[i];
}

}  // namespace int8_cuda
