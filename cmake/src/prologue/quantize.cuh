// Quantisation of one row: loads, outlier tests, range, quantization parameters, rounding. Shared by all kernels that quantise.
#pragma once

#include "common/types.cuh"
#include "int8_cuda.h"

namespace int8_cuda {

// Columns a thread handles at a time: 16 bytes of a 16-bit type.
constexpr int kChunk = 8;
constexpr float kMinScale = 7.52316385e-37f;  // 2^-120: below, 127/s overflows

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

// Eight values of a row from column k on, 0 beyond the row's end.
template <typename T, bool kVector>
__device__ __forceinline__ void load_chunk(const T *row, int64_t k, int64_t inner, T (&v)[kChunk]) {
  if (kVector && k + kChunk <= inner) {
    static_assert(!kVector || sizeof(T) == 2, "vector loads are for 16-bit types");
    *reinterpret_cast<uint4 *>(v) = *reinterpret_cast<const uint4 *>(row + k);
    return;
  }
#pragma unroll
  for (int i = 0; i < kChunk; ++i) v[i] = k + i < inner ? row[k + i] : from_f32<T>(0.0f);
}

template <int kBlock, typename V, typename Op>
__device__ __forceinline__ V block_reduce(V v, Op op, V *scratch) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v = op(v, __shfl_xor_sync(0xffffffffu, v, offset));
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  v = scratch[threadIdx.x % 32 % (kBlock / 32)];
#pragma unroll
  for (int offset = kBlock / 64; offset > 0; offset /= 2) v = op(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}

// Two 16-bit values in one word. Magnitudes, as bits, order as unsigned integers: finite < infinity < NaN.
constexpr uint32_t kMagnitudes = 0x7fff7fffu;
template <typename T>
struct Packed;
template <>
struct Packed<__half> {
  using Pair = __half2;
  static constexpr uint32_t kInfinity = 0x7c00u;
  // The smallest magnitude, as bits, that a value >= threshold can have.
  static __device__ __forceinline__ uint32_t at_least(float threshold) { return __half_as_ushort(__float2half_ru(threshold)); }
  static __device__ __forceinline__ float2 unpack(uint32_t v) { return __half22float2(*reinterpret_cast<Pair *>(&v)); }
};
template <>
struct Packed<__nv_bfloat16> {
  using Pair = __nv_bfloat162;
  static constexpr uint32_t kInfinity = 0x7f80u;
  static __device__ __forceinline__ uint32_t at_least(float threshold) {
    return __bfloat16_as_ushort(__float2bfloat16_ru(threshold));
  }
  static __device__ __forceinline__ float2 unpack(uint32_t v) {
    return make_float2(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u));
  }
};
// For each 16-bit value: the larger of `most` and |v|. A NaN in v is ignored, or wins.
template <typename T, bool kNanWins>
__device__ __forceinline__ uint32_t larger_magnitudes(uint32_t most, uint32_t v) {
  using Pair = typename Packed<T>::Pair;
  const Pair a = *reinterpret_cast<Pair *>(&most), b = __habs2(*reinterpret_cast<Pair *>(&v));
  const Pair larger = kNanWins ? __hmax2_nan(a, b) : __hmax2(a, b);
  return *reinterpret_cast<const uint32_t *>(&larger);
}
__device__ __forceinline__ uint32_t larger_of_pair(uint32_t v) { return max(v & 0xffffu, v >> 16); }
template <typename T>
__device__ __forceinline__ const uint32_t (&words_of(const T (&v)[kChunk]))[kChunk / 2] {
  return reinterpret_cast<const uint32_t(&)[kChunk / 2]>(v);
}

// Bits of the chunk's values with magnitude >= threshold. `floor`: Packed::at_least(threshold), which rejects a whole chunk.
template <typename T, bool kVector>
__device__ __forceinline__ uint32_t hits_of(const T (&v)[kChunk], float threshold, uint32_t floor) {
  if constexpr (kVector) {
    const auto &w = words_of(v);
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < kChunk / 2; ++i) most = __vmaxu2(most, w[i] & kMagnitudes);
    if (larger_of_pair(most) < floor) return 0;
  }
  uint32_t hits = 0;
#pragma unroll
  for (int i = 0; i < kChunk; ++i) hits |= (fabsf(to_f32(v[i])) >= threshold ? 1u : 0u) << i;
  return hits;
}
template <typename T, bool kVector>
__device__ __forceinline__ uint32_t floor_of(float threshold) {
  if constexpr (kVector) return Packed<T>::at_least(threshold);
  return 0;
}

// lo = min(x, 0), hi = max(x, 0) over the values that count.
struct Range {
  float low = 0.0f, high = 0.0f;
  uint32_t infinite = 0;

  __device__ __forceinline__ void add(float v) {
    low = fminf(low, v);
    high = fmaxf(high, v);
    infinite |= !(fabsf(v) < infinity());
  }
};

// Scale, 127/scale and zero point of a row, as int8_cuda.h defines them.
struct QuantizationParameters {
  float scale, inverse;
  int32_t zero;

  __device__ QuantizationParameters(const Range &range, int encoding) : inverse(0.0f), zero(0) {
    if (range.infinite) {
      scale = __int_as_float(0x7fc00000);
      return;
    }
    scale = encoding == INT8_CUDA_ABSMAX ? fmaxf(range.high, -range.low)
                                         : __fsub_rn(__fmul_rn(range.high, 0.5f), __fmul_rn(range.low, 0.5f));
    if (scale < kMinScale) return;
    inverse = __fdiv_rn(127.0f, scale);
    if (encoding == INT8_CUDA_ZEROPOINT) zero = -__float2int_rn(__fmul_rn(range.low, inverse)) - 127;
  }

  __device__ __forceinline__ int32_t code(float v) const {
    if (inverse == 0.0f) return 0;
    return max(-127, min(127, __float2int_rn(__fmul_rn(v, inverse)) + zero));
  }

  // v * 127/s rounded to an integer, in the low bits: adding 1.5 * 2^23 rounds half to even at the last bit. The product is
  // rounded first, as in code(). For |v| <= s only.
  __device__ __forceinline__ uint32_t rounded(float v) const {
    return __float_as_uint(__fadd_rn(__fmul_rn(v, inverse), 12582912.0f));
  }
};

// The range of a thread's chunks of 16-bit values, two values an instruction.
template <typename T>
struct PackedRange {
  using Pair = typename Packed<T>::Pair;
  uint32_t most = 0;
  uint32_t low = 0, high = 0;

  __device__ __forceinline__ void add(uint32_t v, bool both_ends) {
    most = __vmaxu2(most, v & kMagnitudes);
    if (both_ends) {
      const Pair a = __hmin2(*reinterpret_cast<Pair *>(&low), *reinterpret_cast<Pair *>(&v));
      const Pair b = __hmax2(*reinterpret_cast<Pair *>(&high), *reinterpret_cast<Pair *>(&v));
      low = *reinterpret_cast<const uint32_t *>(&a);
      high = *reinterpret_cast<const uint32_t *>(&b);
    }
  }

  // The chunk's values, but those with a bit in `skip`.
  __device__ __forceinline__ void add_chunk(const T (&v)[kChunk], uint32_t skip, bool both_ends) {
#pragma unroll
    for (int i = 0; i < kChunk / 2; ++i) {
      uint32_t word = words_of(v)[i];
      if (skip != 0) word &= (skip >> (2 * i) & 1u ? 0u : 0xffffu) | (skip >> (2 * i) & 2u ? 0u : 0xffff0000u);
      add(word, both_ends);
    }
  }
};

// The codes of a chunk, four in a word. out: bits of the outliers, whose code stands for 0. after: how many values of the
// chunk lie inside the row; the padding behind has the code 0.
template <typename T, bool kVector>
__device__ __forceinline__ void encode_chunk(const T (&v)[kChunk], const QuantizationParameters &parameters, bool zero_point, uint32_t out,
                                             int64_t after, uint32_t (&packed)[2]) {
  if constexpr (kVector) {
    uint32_t codes[kChunk];
#pragma unroll
    for (int i = 0; i < kChunk / 2; ++i) {
      const float2 pair = Packed<T>::unpack(words_of(v)[i]);
      codes[2 * i] = parameters.rounded(pair.x);
      codes[2 * i + 1] = parameters.rounded(pair.y);
    }
    if (zero_point) {
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const int code = static_cast<int>(codes[i] - 0x4b400000u) + parameters.zero;
        codes[i] = static_cast<uint32_t>(max(-127, min(127, code)));
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t *q = codes + 4 * i;
      packed[i] = __byte_perm(__byte_perm(q[0], q[1], 0x0040), __byte_perm(q[2], q[3], 0x0040), 0x5410);
    }
    if (parameters.inverse == 0.0f) packed[0] = packed[1] = 0;
  } else {
    int8_t q[kChunk];
#pragma unroll
    for (int i = 0; i < kChunk; ++i) q[i] = static_cast<int8_t>(parameters.code(to_f32(v[i])));
    packed[0] = reinterpret_cast<const uint32_t *>(q)[0];
    packed[1] = reinterpret_cast<const uint32_t *>(q)[1];
  }
  if (out != 0) {
    const uint32_t zeros = (static_cast<uint32_t>(parameters.zero) & 0xffu) * 0x01010101u;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      // Each of four bits becomes a byte of ones.
      const uint32_t bytes = ((out >> (4 * i) & 0xfu) * 0x00204081u & 0x01010101u) * 0xffu;
      packed[i] = (packed[i] & ~bytes) | (zeros & bytes);
    }
  }
  if (after < kChunk) {
    for (int i = after < 0 ? 0 : static_cast<int>(after); i < kChunk; ++i) {
      const uint32_t byte = ~(0xffu << (i % 4 * 8));
      packed[0] &= i < 4 ? byte : ~0u;
      packed[1] &= i < 4 ? ~0u : byte;
    }
  }
}

}  // namespace int8_cuda
