// The prologue of one row by 256 threads of a block: its function, rounded to T, in shared memory; outliers; range; codes.
//
// Loops are not unrolled, but for loads: the code runs once a launch, its instructions come from L2 or memory, and there behind the
// weights' loads (contraction of OPT-6.7B: 30 us unrolled, 23 rolled).
//
// Thread t owns chunks t, t + 256, ..: it alone reads and writes them in shared memory, so that no barrier stands between steps.
#pragma once

#include "common/rows.cuh"
#include "common/tma.cuh"
#include "prologue/activation.cuh"
#include "prologue/norm.cuh"
#include "prologue/quantize.cuh"

namespace int8_cuda {

// Chunks of an f32 row that a thread keeps in registers while it is normalised.
constexpr int kWideChunks = 5;
static_assert(kChunk == kRun, "a chunk is a run");

constexpr int kRowThreads = kNormThreads, kRowWarps = kRowThreads / 32;

// Not __syncthreads: a block may have other warps.
__device__ __forceinline__ void row_sync() { named_barrier(1, kRowThreads); }

// Over these threads, in the order of warps; the same in every thread.
template <typename V, typename Op>
__device__ __forceinline__ V row_reduce(V v, Op op, uint32_t (&scratch)[kRowWarps]) {
  static_assert(sizeof(V) == 4, "words");
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v = op(v, __shfl_xor_sync(0xffffffffu, v, offset));
  V *words = reinterpret_cast<V *>(scratch);
  row_sync();  // the last call's words have been read
  if (threadIdx.x % 32 == 0) words[threadIdx.x / 32] = v;
  row_sync();
  v = words[0];
#pragma unroll
  for (int i = 1; i < kRowWarps; ++i) v = op(v, words[i]);
  return v;
}

// A row x of type T: itself or max(x, 0).
template <typename T>
__device__ __forceinline__ void load_plain(const int8_cuda_transform &f, const T *x, int k, T *to) {
  constexpr int kBatch = 4;
  const int chunks = k / kChunk;
#pragma unroll 1
  for (int base = threadIdx.x; base < chunks; base += kBatch * kRowThreads) {
    uint4 raw[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) raw[b] = *reinterpret_cast<const uint4 *>(x + min(base + b * kRowThreads, chunks - 1) * kChunk);
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int chunk = base + b * kRowThreads;
      if (f.function == INT8_CUDA_ACTIVATION) {
        T *v = reinterpret_cast<T *>(&raw[b]);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) v[i] = from_f32<T>(activate(to_f32(v[i]), INT8_CUDA_RELU));
      }
      if (chunk < chunks) *reinterpret_cast<uint4 *>(to + chunk * kChunk) = raw[b];
    }
  }
}

// An f32 row x of at most kWideChunks * kRowThreads chunks, normalised and rounded to T.
template <typename T>
__device__ __forceinline__ void load_normed(const int8_cuda_transform &f, const float *x, int k, uint32_t (&scratch)[kRowWarps], T *to) {
  const int chunks = k / kChunk;
  const auto sum = [&](float v) { return row_reduce(v, [](float a, float b) { return a + b; }, scratch); };
  float v[kWideChunks][kChunk] = {};
#pragma unroll
  for (int c = 0; c < kWideChunks; ++c) {
    const int chunk = static_cast<int>(threadIdx.x) + c * kRowThreads;
    if (chunk < chunks) load_run(x + chunk * kChunk, kChunk, true, v[c]);
  }
  float mean = 0.0f, factor = 1.0f;
  const bool centred = f.function == INT8_CUDA_LAYER_NORM, normed = f.function != INT8_CUDA_IDENTITY;
  if (centred) {
#pragma unroll
    for (int c = 0; c < kWideChunks; ++c) {
#pragma unroll
      for (int i = 0; i < kChunk; ++i) mean += v[c][i];
    }
    mean = sum(mean) / static_cast<float>(k);
  }
  if (normed) {
    float squares = 0.0f;
#pragma unroll
    for (int c = 0; c < kWideChunks; ++c) {
      if (static_cast<int>(threadIdx.x) + c * kRowThreads >= chunks) break;
#pragma unroll
      for (int i = 0; i < kChunk; ++i) squares = fmaf(v[c][i] - mean, v[c][i] - mean, squares);
    }
    factor = norm_factor(sum(squares), k, f.eps);
  }
#pragma unroll
  for (int c = 0; c < kWideChunks; ++c) {
    const int chunk = static_cast<int>(threadIdx.x) + c * kRowThreads;
    if (chunk >= chunks) break;
    if (normed) {
      float gain[kRun], bias[kRun] = {};
      load_run(f.gain + chunk * kChunk, kChunk, true, gain);
      if (f.bias != nullptr && centred) load_run(f.bias + chunk * kChunk, kChunk, true, bias);
      normalise(v[c], mean, factor, gain, bias);
    }
    store_run(to + chunk * kChunk, kChunk, true, v[c]);
  }
}

// kWide: x is f32; else of type T.
template <typename T, bool kWide>
__device__ __forceinline__ void load_row(const int8_cuda_transform &f, const void *x, int k, uint32_t (&scratch)[kRowWarps], T *to) {
  if constexpr (kWide) {
    load_normed(f, static_cast<const float *>(x), k, scratch, to);
  } else {
    load_plain(f, static_cast<const T *>(x), k, to);
  }
}
// Whether load_row computes this function. The other activations take longer in every block, 4 us for SILU of 14336 columns,
// than a kernel before.
inline bool row_functions(const int8_cuda_transform &f, int64_t k, int x_element, int element) {
  const bool identity = f.function == INT8_CUDA_IDENTITY;
  if (x_element == INT8_CUDA_F32) {
    const bool aligned = rows_aligned(f.gain, 0, INT8_CUDA_F32) && rows_aligned(f.bias, 0, INT8_CUDA_F32);
    return (identity || f.function == INT8_CUDA_RMS_NORM || f.function == INT8_CUDA_LAYER_NORM) && aligned && k <= kWideChunks * kRowThreads * kChunk;
  }
  return x_element == element && (identity || (f.function == INT8_CUDA_ACTIVATION && f.activation == INT8_CUDA_RELU));
}

// Weights of a norm, which no kernel writes: prefetched to L2 before the PDL wait, 128 bytes a thread.
__device__ __forceinline__ void prefetch_norm(const int8_cuda_transform &f, int k) {
  for (int i = static_cast<int>(threadIdx.x) * 32; i < k; i += kRowThreads * 32) {
    if (f.gain != nullptr) asm volatile("prefetch.global.L2 [%0];" ::"l"(f.gain + i));
    if (f.bias != nullptr) asm volatile("prefetch.global.L2 [%0];" ::"l"(f.bias + i));
  }
}

// This thread's part of the range of the values that are no outliers, |x| >= threshold where `decompose`; bit i of bits[c] tells of
// value i of chunk c.
template <typename T>
__device__ __forceinline__ PackedRange<T> scan_row(const T *row, int chunks, bool decompose, float threshold, bool both_ends, uint8_t *bits,
                                                   uint32_t *found) {
  const uint32_t floor = Packed<T>::at_least(threshold);
  PackedRange<T> packed;
#pragma unroll 1
  for (int chunk = threadIdx.x; chunk < chunks; chunk += kRowThreads) {
    const uint4 raw = *reinterpret_cast<const uint4 *>(row + chunk * kChunk);
    const T(&v)[kChunk] = reinterpret_cast<const T(&)[kChunk]>(raw);
    const uint32_t skip = decompose ? hits_of<T, true>(v, threshold, floor) : 0u;
    bits[chunk] = static_cast<uint8_t>(skip);
    *found |= skip;
    packed.add_chunk(v, skip, both_ends);
  }
  return packed;
}

// The row's range. *any: whether a thread found an outlier.
template <typename T>
__device__ __forceinline__ Range reduce_range(const PackedRange<T> &packed, bool both_ends, uint32_t found, uint32_t (&scratch)[kRowWarps], bool *any) {
  // The largest magnitude in the low bits, and above them whether there are outliers.
  const uint32_t both = row_reduce(larger_of_pair(packed.most) | (found != 0 ? 0x10000u : 0u),
                                    [](uint32_t a, uint32_t b) { return max(a & 0xffffu, b & 0xffffu) | ((a | b) & 0x10000u); }, scratch);
  const uint32_t most = both & 0xffffu;
  *any = (both & 0x10000u) != 0;
  Range range;
  range.infinite = most >= Packed<T>::kInfinity;
  range.high = Packed<T>::unpack(most).x;
  if (both_ends) {
    const float2 low = Packed<T>::unpack(packed.low), high = Packed<T>::unpack(packed.high);
    range.low = row_reduce(fminf(low.x, low.y), [](float a, float b) { return fminf(a, b); }, scratch);
    range.high = row_reduce(fmaxf(high.x, high.y), [](float a, float b) { return fmaxf(a, b); }, scratch);
  }
  return range;
}

// Codes, 0 from column k to `padded`, a multiple of 8; values with set bits become the code of 0. Returns the sum of this thread's.
template <typename T>
__device__ __forceinline__ int32_t encode_row(const T *row, int k, int padded, const uint8_t *bits, const QuantizationParameters &parameters,
                                              bool zero_point, int8_t *codes) {
  int32_t sum = 0;
#pragma unroll 1
  for (int chunk = static_cast<int>(threadIdx.x); chunk * kChunk < padded; chunk += kRowThreads) {
    uint32_t q[2] = {0, 0};
    if (chunk * kChunk < k) {
      const uint4 raw = *reinterpret_cast<const uint4 *>(row + chunk * kChunk);
      encode_chunk<T, true>(reinterpret_cast<const T(&)[kChunk]>(raw), parameters, zero_point, bits[chunk], kChunk, q);
      sum = __dp4a(static_cast<int>(q[0]), 0x01010101, __dp4a(static_cast<int>(q[1]), 0x01010101, sum));
    }
    *reinterpret_cast<uint2 *>(codes + chunk * kChunk) = make_uint2(q[0], q[1]);
  }
  return sum;
}

}  // namespace int8_cuda
