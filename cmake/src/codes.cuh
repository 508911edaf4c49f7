// From values to codes: loading, outlier tests, ranges, constants and rounding of one row, shared by all kernels that quantise.
#pragma once

#include "common.cuh"

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
// Of both halves: the larger one of `most` and |v|. A NaN in v counts for nothing, or for more than all else.
template <typename T, bool kNanWins>
__device__ __forceinline__ uint32_t larger_magnitudes(uint32_t most, uint32_t v) {
  using Pair = typename Packed<T>::Pair;
  const Pair a = *reinterpret_cast<Pair *>(&most), b = __habs2(*reinterpret_cast<Pair *>(&v));
  const Pair larger = kNanWins ? __hmax2_nan(a, b) : __hmax2(a, b);
  return *reinterpret_cast<const uint32_t *>(&larger);
}
__device__ __forceinline__ uint32_t larger_half(uint32_t v) { return max(v & 0xffffu, v >> 16); }
template <typename T>
__device__ __forceinline__ const uint32_t (&words_of(const T (&v)[kChunk]))[kChunk / 2] {
  return reinterpret_cast<const uint32_t(&)[kChunk / 2]>(v);
}

// Bits of the chunk's values with magnitude >= threshold. `floor`: Packed::at_least of it, for a quick look at them all.
template <typename T, bool kVector>
__device__ __forceinline__ uint32_t hits_of(const T (&v)[kChunk], float threshold, uint32_t floor) {
  if constexpr (kVector) {
    const auto &w = words_of(v);
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < kChunk / 2; ++i) most = __vmaxu2(most, w[i] & kMagnitudes);
    if (larger_half(most) < floor) return 0;
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

struct RangeOfRow {
  float low = 0.0f, high = 0.0f;
  uint32_t infinite = 0;

  __device__ __forceinline__ void add(float v) {
    low = fminf(low, v);
    high = fmaxf(high, v);
    infinite |= !(fabsf(v) < infinity());
  }
};

struct Constants {
  float scale, inverse;
  int32_t zero;

  __device__ Constants(const RangeOfRow &range, int encoding) : inverse(0.0f), zero(0) {
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
  // rounded first, as everywhere. For |v| <= s only.
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
};

// Outlier columns that are listed in shared memory at a time.
constexpr int kListed = 1024;

// In shared memory: the mask, the number of outlier columns before each word, and a list of columns.
template <int kBlock>
struct Columns {
  uint32_t *mask, *before;
  int32_t *list;
  uint32_t count;

  __device__ void scan(int words, uint32_t *scratch) {
    // Thread t counts a run of consecutive words; the runs are summed by warp, then over warps.
    const int run = ceil_div(words, kBlock);
    const int begin = min(static_cast<int>(threadIdx.x) * run, words), end = min(begin + run, words);
    uint32_t own = 0;
    for (int i = begin; i < end; ++i) own += __popc(mask[i]);
    uint32_t inclusive = own;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const uint32_t other = __shfl_up_sync(0xffffffffu, inclusive, offset);
      if (threadIdx.x % 32 >= offset) inclusive += other;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 31) scratch[threadIdx.x / 32] = inclusive;
    __syncthreads();
    uint32_t base = 0;
    count = 0;
#pragma unroll
    for (int warp = 0; warp < kBlock / 32; ++warp) {
      if (warp == threadIdx.x / 32) base = count;
      count += scratch[warp];
    }
    uint32_t at = base + inclusive - own;
    for (int i = begin; i < end; ++i) {
      before[i] = at;
      at += __popc(mask[i]);
    }
    __syncthreads();
  }

  // Lists outlier columns first..first+kListed (by rank); returns how many there are.
  __device__ uint32_t make_list(int words, uint32_t first) {
    __syncthreads();
    for (int i = threadIdx.x; i < words; i += kBlock) {
      uint32_t bits = mask[i];
      for (uint32_t rank = before[i]; bits != 0; ++rank, bits &= bits - 1) {
        if (rank >= first && rank - first < kListed) list[rank - first] = i * 32 + __ffs(bits) - 1;
      }
    }
    __syncthreads();
    return min(count - first, static_cast<uint32_t>(kListed));
  }
};

// The codes of a chunk, four in a word. out: bits of the values that are left out. after: how many values of the chunk lie
// inside the row; the padding behind gets 0.
template <typename T, bool kVector>
__device__ __forceinline__ void encode_chunk(const T (&v)[kChunk], const Constants &constants, bool zero_point, uint32_t out,
                                             int64_t after, uint32_t (&packed)[2]) {
  if constexpr (kVector) {
    uint32_t steps[kChunk];
#pragma unroll
    for (int i = 0; i < kChunk / 2; ++i) {
      const float2 pair = Packed<T>::unpack(words_of(v)[i]);
      steps[2 * i] = constants.rounded(pair.x);
      steps[2 * i + 1] = constants.rounded(pair.y);
    }
    if (zero_point) {
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const int code = static_cast<int>(steps[i] - 0x4b400000u) + constants.zero;
        steps[i] = static_cast<uint32_t>(max(-127, min(127, code)));
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t *q = steps + 4 * i;
      packed[i] = __byte_perm(__byte_perm(q[0], q[1], 0x0040), __byte_perm(q[2], q[3], 0x0040), 0x5410);
    }
    if (constants.inverse == 0.0f) packed[0] = packed[1] = 0;
  } else {
    int8_t q[kChunk];
#pragma unroll
    for (int i = 0; i < kChunk; ++i) q[i] = static_cast<int8_t>(constants.code(to_f32(v[i])));
    packed[0] = reinterpret_cast<const uint32_t *>(q)[0];
    packed[1] = reinterpret_cast<const uint32_t *>(q)[1];
  }
  // Left-out values get the code of 0.
  if (out != 0) {
    const uint32_t zeros = (static_cast<uint32_t>(constants.zero) & 0xffu) * 0x01010101u;
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
