// Runs of eight neighbouring values of a row, in f32.
#pragma once

#include "common/types.cuh"
#include "int8_cuda.h"

namespace int8_cuda {

constexpr int kRun = 8;

// Eight values as they lie in memory, so that several loads are in flight before the first is converted.
template <typename T>
struct RawRun {
  uint4 words[sizeof(T) / 2];
};
template <typename T>
__device__ __forceinline__ RawRun<T> load_raw(const T *from) {
  RawRun<T> raw;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(T) / 2); ++i) raw.words[i] = reinterpret_cast<const uint4 *>(from)[i];
  return raw;
}
template <typename T>
__device__ __forceinline__ void convert_run(const RawRun<T> &raw, float (&v)[kRun]) {
  const T *values = reinterpret_cast<const T *>(raw.words);
#pragma unroll
  for (int i = 0; i < kRun; ++i) v[i] = to_f32(values[i]);
}

// vector: `from` is 16-byte aligned and all eight values exist; else `count` of them, 0 behind.
template <typename T>
__device__ __forceinline__ void load_run(const T *from, int64_t count, bool vector, float (&v)[kRun]) {
  if (vector) {
    convert_run(load_raw(from), v);
    return;
  }
#pragma unroll
  for (int i = 0; i < kRun; ++i) v[i] = i < count ? to_f32(from[i]) : 0.0f;
}
template <typename T>
__device__ __forceinline__ void store_run(T *to, int64_t count, bool vector, const float (&v)[kRun]) {
  if (vector) {
    RawRun<T> raw;
    T *values = reinterpret_cast<T *>(raw.words);
#pragma unroll
    for (int i = 0; i < kRun; ++i) values[i] = from_f32<T>(v[i]);
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(T) / 2); ++i) reinterpret_cast<uint4 *>(to)[i] = raw.words[i];
    return;
  }
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    if (i < count) to[i] = from_f32<T>(v[i]);
  }
}

// The same of an element type known at run time.
__device__ __forceinline__ void load_run(const void *base, int64_t index, int element, int64_t count, bool vector, float (&v)[kRun]) {
  switch (element) {
    case INT8_CUDA_F16: load_run(static_cast<const __half *>(base) + index, count, vector, v); break;
    case INT8_CUDA_BF16: load_run(static_cast<const __nv_bfloat16 *>(base) + index, count, vector, v); break;
    default: load_run(static_cast<const float *>(base) + index, count, vector, v);
  }
}
__device__ __forceinline__ void store_run(void *base, int64_t index, int element, int64_t count, bool vector, const float (&v)[kRun]) {
  switch (element) {
    case INT8_CUDA_F16: store_run(static_cast<__half *>(base) + index, count, vector, v); break;
    case INT8_CUDA_BF16: store_run(static_cast<__nv_bfloat16 *>(base) + index, count, vector, v); break;
    default: store_run(static_cast<float *>(base) + index, count, vector, v);
  }
}

// Rows of `ld` elements whose runs of eight can be loaded by 16 bytes: `base` and the distance of rows are multiples of 16 bytes.
inline bool rows_aligned(const void *base, int64_t ld, int element) {
  const int64_t bytes = element == INT8_CUDA_F32 ? 4 : 2;
  return reinterpret_cast<uintptr_t>(base) % 16 == 0 && ld * bytes % 16 == 0;
}

}  // namespace int8_cuda
