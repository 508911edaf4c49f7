// Quantisation of rows and the outlier rules. One block handles one row; its values stay in registers between the
// search for the range and the rounding, so that x is read from memory once.
#include "rows.cuh"

namespace int8_cuda {
namespace {

// Threads for a row. With few rows, latency counts and a row gets a whole multiprocessor.
constexpr int kThreads = 256, kThreadsFewRows = 1024;
// Columns a thread handles at a time: 16 bytes of a 16-bit type.
constexpr int kChunk = 8;
// Fewer rows than a quarter of the multiprocessors of a large device.
constexpr int kFewRows = 32;
// Outlier columns that are listed in shared memory at a time.
constexpr int kListed = 1024;
// Rows of W that one block gathers.
constexpr int kGatherRows = 32;
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

template <int kBlock = kThreads, typename V, typename Op>
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

// --- thresholds of the relative rules -------------------------------------------------------------------------------

// threshold * statistic(row). Median: the lower median of the non-zero magnitudes, found by four rounds of a radix
// selection over the bits of |x| (which order as the values do). Mean: of all magnitudes, summed in f64.
template <typename T>
__global__ void __launch_bounds__(kThreads) row_thresholds(RowsParams p) {
  __shared__ uint32_t histogram[256];
  __shared__ uint32_t scratch[kThreads / 32];
  __shared__ double scratch_f64[kThreads / 32];
  __shared__ uint32_t chosen[2];
  let_successor_start();
  wait_for_predecessor();
  const T *row = static_cast<const T *>(p.x) + static_cast<int64_t>(blockIdx.x) * p.ldx;
  float level = 0.0f;
  if (p.rule == INT8_CUDA_RULE_MEAN) {
    double sum = 0.0;
    for (int64_t k = threadIdx.x; k < p.k; k += kThreads) sum += static_cast<double>(fabsf(to_f32(row[k])));
    sum = block_reduce(sum, [](double a, double b) { return a + b; }, scratch_f64);
    level = static_cast<float>(sum / static_cast<double>(p.k));
  } else {
    uint32_t nonzero = 0, nan = 0;
    for (int64_t k = threadIdx.x; k < p.k; k += kThreads) {
      const uint32_t bits = __float_as_uint(fabsf(to_f32(row[k])));
      nonzero += bits != 0;
      nan |= bits > 0x7f800000u;
    }
    nonzero = block_reduce(nonzero, [](uint32_t a, uint32_t b) { return a + b; }, scratch);
    nan = block_reduce(nan, [](uint32_t a, uint32_t b) { return a | b; }, scratch);
    if (nan == 0 && nonzero > 0) {
      uint32_t rank = (nonzero - 1) / 2, prefix = 0;
      for (int shift = 24; shift >= 0; shift -= 8) {
        __syncthreads();
        histogram[threadIdx.x] = 0;
        __syncthreads();
        const uint32_t above = shift == 24 ? 0u : 0xffffffffu << (shift + 8);
        for (int64_t k = threadIdx.x; k < p.k; k += kThreads) {
          const uint32_t bits = __float_as_uint(fabsf(to_f32(row[k])));
          if (bits != 0 && (bits & above) == prefix) atomicAdd(&histogram[(bits >> shift) & 255u], 1u);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
          uint32_t before = 0, digit = 0;
          while (before + histogram[digit] <= rank) before += histogram[digit++];
          chosen[0] = digit;
          chosen[1] = rank - before;
        }
        __syncthreads();
        prefix |= chosen[0] << shift;
        rank = chosen[1];
      }
      level = __uint_as_float(prefix);
    }
  }
  if (threadIdx.x == 0) {
    // A row of zeros or with NaN has no outliers but +-inf.
    const bool usable = level > 0.0f && level < infinity();
    p.thresholds[blockIdx.x] = usable ? __fmul_rn(p.threshold, level) : infinity();
  }
}

// --- columns that hold an outlier -----------------------------------------------------------------------------------

constexpr int kMaskThreads = 512;

// One block finds one word of the mask: 32 columns, all rows. Blocks own their words, so nothing needs to be cleared.
template <typename T, bool kVector>
__global__ void __launch_bounds__(kMaskThreads) column_mask(RowsParams p) {
  __shared__ uint32_t word;
  if (threadIdx.x == 0) word = 0;
  let_successor_start();
  wait_for_predecessor();
  __syncthreads();
  const T *x = static_cast<const T *>(p.x);
  const bool relative = p.rule != INT8_CUDA_RULE_ABSOLUTE;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * 32;
  // Four threads read the 32 columns of a row, 128 rows at a time.
  const int part = threadIdx.x % 4;
  uint32_t hits = 0;
  bool exact = true;
  if constexpr (kVector) {
    if (!relative) {
      // The largest magnitude of each column will do, unless it is a NaN, which hides what is below it.
      uint32_t most[kChunk / 2] = {};
#pragma unroll 8
      for (int64_t m = threadIdx.x / 4; m < p.m; m += kMaskThreads / 4) {
        T v[kChunk];
        load_chunk<T, kVector>(x + m * p.ldx, first + part * kChunk, p.k, v);
#pragma unroll
        for (int i = 0; i < kChunk / 2; ++i) most[i] = __vmaxu2(most[i], words_of(v)[i] & kMagnitudes);
      }
      const uint32_t floor = Packed<T>::at_least(p.threshold);
      exact = false;
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const uint32_t bits = i % 2 == 0 ? most[i / 2] & 0xffffu : most[i / 2] >> 16;
        hits |= (bits >= floor ? 1u : 0u) << i;
        exact = exact || bits > Packed<T>::kInfinity;
      }
      if (exact) hits = 0;
    }
  }
  if (exact) {
#pragma unroll 4
    for (int64_t m = threadIdx.x / 4; m < p.m; m += kMaskThreads / 4) {
      T v[kChunk];
      load_chunk<T, kVector>(x + m * p.ldx, first + part * kChunk, p.k, v);
      const float threshold = relative ? p.thresholds[m] : p.threshold;
      hits |= hits_of<T, kVector>(v, threshold, floor_of<T, kVector>(threshold));
    }
  }
  hits <<= part * kChunk;
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) hits |= __shfl_xor_sync(0xffffffffu, hits, offset);
  if (threadIdx.x % 32 == 0 && hits != 0) atomicOr(&word, hits);
  __syncthreads();
  // Columns beyond k were read as 0, which a positive threshold never takes.
  if (threadIdx.x == 0) p.outliers.mask[blockIdx.x] = word;
}

// --- codes ----------------------------------------------------------------------------------------------------------

// Shared memory of quantize_rows: the mask, the number of outlier columns before each word, and a list of columns.
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

// kCached: chunks of a row that a thread keeps in registers (0: it reads the row again, through the cache).
template <typename T, bool kVector, int kCached, int kBlock>
__global__ void __launch_bounds__(kBlock) quantize_rows(RowsParams p, int ranges_only, int given_range) {
  extern __shared__ uint32_t shared[];
  __shared__ float scratch_f32[kBlock / 32];
  __shared__ uint32_t scratch[kBlock / 32];
  __shared__ int32_t scratch_i32[kBlock / 32];
  const int words = static_cast<int>(ceil_div<int64_t>(p.k, 32));
  Columns<kBlock> columns{shared, shared + words, reinterpret_cast<int32_t *>(shared + 2 * words), 0};
  const bool decompose = p.rule != INT8_CUDA_RULE_NONE;
  const bool relative = decompose && p.rule != INT8_CUDA_RULE_ABSOLUTE;
  const bool by_value = p.outlier_granularity == INT8_CUDA_VALUE;
  const T *x = static_cast<const T *>(p.x);
  const int64_t m = blockIdx.x;
  let_successor_start();
  wait_for_predecessor();

  if (decompose) {
    if (p.m <= kSmallRows) {
      // Every block reads all rows: with so few that is cheaper than another launch.
      uint8_t *bytes = reinterpret_cast<uint8_t *>(columns.mask);
      for (int chunk = threadIdx.x; chunk < words * 4; chunk += kBlock) {
        uint32_t hits = 0;
#pragma unroll
        for (int r = 0; r < kSmallRows; ++r) {
          if (r >= p.m) break;
          T v[kChunk];
          load_chunk<T, kVector>(x + r * p.ldx, static_cast<int64_t>(chunk) * kChunk, p.k, v);
          const float threshold = relative ? p.thresholds[r] : p.threshold;
          hits |= hits_of<T, kVector>(v, threshold, floor_of<T, kVector>(threshold));
        }
        bytes[chunk] = static_cast<uint8_t>(hits);
      }
    } else {
      for (int i = threadIdx.x; i < words; i += kBlock) columns.mask[i] = p.outliers.mask[i];
    }
    __syncthreads();
  }

  if (m >= p.m) {
    // The blocks after the rows gather the weights of the outlier columns.
    columns.scan(words, scratch);
    const int64_t n0 = (m - p.m) * kGatherRows;
    const int rows = static_cast<int>(min(static_cast<int64_t>(kGatherRows), p.n - n0));
    const uint32_t kept = min(columns.count, static_cast<uint32_t>(p.outliers.ld));
    T *out = static_cast<T *>(p.outliers.w);
    for (uint32_t first = 0; first < kept; first += kListed) {
      const uint32_t listed = min(columns.make_list(words, first), kept - first);
      const uint32_t padded = round_up(listed, 64u);
      for (uint32_t i = threadIdx.x; i < rows * padded; i += kBlock) {
        const int64_t n = n0 + i / padded;
        const uint32_t j = i % padded;
        float v = 0.0f;
        if (j < listed) {
          const int k = columns.list[j];
          if (p.weights_are_codes) {
            const int zero = p.weight.zero_points != nullptr ? p.weight.zero_points[n] : 0;
            v = static_cast<float>(p.weight.codes[n * p.weight.ldw + k] - zero);
          } else {
            v = outlier_weight<T>(p.weight, n, k);
          }
        }
        out[n * p.outliers.ld + first + j] = from_f32<T>(v);
      }
    }
    return;
  }

  const T *row = x + m * p.ldx;
  const float threshold = relative ? p.thresholds[m] : p.threshold;
  const int chunks = static_cast<int>(p.ldq / kChunk);
  const uint8_t *mask_bytes = reinterpret_cast<const uint8_t *>(columns.mask);
  T cache[kCached == 0 ? 1 : kCached][kChunk];
  auto for_each_chunk = [&](bool load, auto body) {
    if constexpr (kCached > 0) {
#pragma unroll
      for (int c = 0; c < kCached; ++c) {
        const int chunk = threadIdx.x + c * kBlock;
        if (chunk >= chunks) break;
        if (load) load_chunk<T, kVector>(row, static_cast<int64_t>(chunk) * kChunk, p.k, cache[c]);
        body(chunk, cache[c]);
      }
    } else {
      for (int chunk = threadIdx.x; chunk < chunks; chunk += kBlock) {
        load_chunk<T, kVector>(row, static_cast<int64_t>(chunk) * kChunk, p.k, cache[0]);
        body(chunk, cache[0]);
      }
    }
  };
  // Bits of the chunk's values that are outliers themselves, and of those that leave the int8 product.
  const uint32_t floor = floor_of<T, kVector>(threshold);
  auto own_hits = [&](const T(&v)[kChunk]) { return hits_of<T, kVector>(v, threshold, floor); };
  auto column_hits = [&](int chunk) { return chunk < words * 4 ? static_cast<uint32_t>(mask_bytes[chunk]) : 0u; };

  RangeOfRow range;
  if (given_range) {
    const float4 whole = p.ranges[0];
    range.low = whole.x;
    range.high = whole.y;
    range.infinite = whole.z != 0.0f;
    if constexpr (kCached > 0) for_each_chunk(true, [](int, const T(&)[kChunk]) {});
  } else {
    const bool own = by_value || p.row_maximum == INT8_CUDA_MAXIMUM_BITSANDBYTES;
    auto skipped = [&](int chunk, const T(&v)[kChunk]) { return !decompose ? 0u : own ? own_hits(v) : column_hits(chunk); };
    auto reduce = [&](float low, float high) {
      range.low = block_reduce<kBlock>(low, [](float a, float b) { return fminf(a, b); }, scratch_f32);
      range.high = block_reduce<kBlock>(high, [](float a, float b) { return fmaxf(a, b); }, scratch_f32);
    };
    if constexpr (kVector) {
      const bool both_ends = p.encoding == INT8_CUDA_ZEROPOINT;
      PackedRange<T> packed;
      for_each_chunk(true, [&](int chunk, const T(&v)[kChunk]) {
        const uint32_t skip = skipped(chunk, v);
#pragma unroll
        for (int i = 0; i < kChunk / 2; ++i) {
          uint32_t word = words_of(v)[i];
          if (skip != 0) word &= (skip >> (2 * i) & 1u ? 0u : 0xffffu) | (skip >> (2 * i) & 2u ? 0u : 0xffff0000u);
          packed.add(word, both_ends);
        }
      });
      const uint32_t most = block_reduce<kBlock>(larger_half(packed.most), [](uint32_t a, uint32_t b) { return max(a, b); }, scratch);
      range.infinite = most >= Packed<T>::kInfinity;
      if (both_ends) {
        const float2 low = Packed<T>::unpack(packed.low), high = Packed<T>::unpack(packed.high);
        reduce(fminf(low.x, low.y), fmaxf(high.x, high.y));
      } else {
        range.high = Packed<T>::unpack(most).x;
      }
    } else {
      for_each_chunk(true, [&](int chunk, const T(&v)[kChunk]) {
        const uint32_t skip = skipped(chunk, v);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
          if (!(skip >> i & 1u)) range.add(to_f32(v[i]));
        }
      });
      range.infinite = block_reduce<kBlock>(range.infinite, [](uint32_t a, uint32_t b) { return a | b; }, scratch);
      reduce(range.low, range.high);
    }
  }
  if (ranges_only) {
    if (threadIdx.x == 0) p.ranges[m] = make_float4(range.low, range.high, range.infinite ? 1.0f : 0.0f, 0.0f);
    return;
  }

  const Constants constants(range, p.encoding);
  int32_t sum = 0;
  int8_t *codes = p.codes + m * p.ldq;
  for_each_chunk(false, [&](int chunk, const T(&v)[kChunk]) {
    uint32_t out = !decompose ? 0u : by_value ? own_hits(v) : column_hits(chunk);
    uint32_t packed[2];
    if constexpr (kVector) {
      uint32_t steps[kChunk];
#pragma unroll
      for (int i = 0; i < kChunk / 2; ++i) {
        const float2 pair = Packed<T>::unpack(words_of(v)[i]);
        steps[2 * i] = constants.rounded(pair.x);
        steps[2 * i + 1] = constants.rounded(pair.y);
      }
      if (p.encoding == INT8_CUDA_ZEROPOINT) {
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
    // Left-out values get the code of 0, the padding after the row gets 0.
    const int64_t after = p.k - static_cast<int64_t>(chunk) * kChunk;
    if (out != 0 || after < kChunk) {
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const uint32_t shift = i % 4 * 8;
        const bool padding = i >= after;
        if (!(out >> i & 1u) && !padding) continue;
        const uint32_t code = padding ? 0u : static_cast<uint32_t>(constants.zero) & 0xffu;
        packed[i / 4] = (packed[i / 4] & ~(0xffu << shift)) | (code << shift);
      }
    }
    if (p.code_sums != nullptr) {
      sum = __dp4a(static_cast<int>(packed[0]), 0x01010101, sum);
      sum = __dp4a(static_cast<int>(packed[1]), 0x01010101, sum);
    }
    *reinterpret_cast<uint2 *>(codes + static_cast<int64_t>(chunk) * kChunk) = make_uint2(packed[0], packed[1]);
  });
  if (p.code_sums != nullptr) sum = block_reduce<kBlock>(sum, [](int32_t a, int32_t b) { return a + b; }, scratch_i32);
  if (threadIdx.x == 0) {
    p.scales[m] = constants.scale;
    if (p.zero_points != nullptr) p.zero_points[m] = constants.zero;
    if (p.code_sums != nullptr) p.code_sums[m] = sum;
  }

  if (!decompose || p.outliers.count == nullptr) return;
  columns.scan(words, scratch);
  if (m == 0 && threadIdx.x == 0) *p.outliers.count = columns.count;
  T *out = static_cast<T *>(p.outliers.x);
  for (uint32_t first = 0; first < columns.count; first += kListed) {
    const uint32_t listed = columns.make_list(words, first);
    for (uint32_t j = threadIdx.x; j < round_up(listed, 64u); j += kBlock) {
      if (m == 0 && j < listed) p.outliers.columns[first + j] = columns.list[j];
      if (out == nullptr || first + j >= p.outliers.ld) continue;
      T v = from_f32<T>(0.0f);
      if (j < listed) {
        v = row[columns.list[j]];
        if (by_value && !(fabsf(to_f32(v)) >= threshold)) v = from_f32<T>(0.0f);
      }
      out[m * p.outliers.ld + first + j] = v;
    }
  }
}

// The union of all rows' ranges, left in ranges[0].
__global__ void __launch_bounds__(kThreads) union_of_ranges(float4 *ranges, int64_t rows) {
  __shared__ float scratch_f32[kThreads / 32];
  __shared__ uint32_t scratch[kThreads / 32];
  let_successor_start();
  wait_for_predecessor();
  RangeOfRow range;
  for (int64_t m = threadIdx.x; m < rows; m += kThreads) {
    range.low = fminf(range.low, ranges[m].x);
    range.high = fmaxf(range.high, ranges[m].y);
    range.infinite |= ranges[m].z != 0.0f;
  }
  range.low = block_reduce(range.low, [](float a, float b) { return fminf(a, b); }, scratch_f32);
  range.high = block_reduce(range.high, [](float a, float b) { return fmaxf(a, b); }, scratch_f32);
  range.infinite = block_reduce(range.infinite, [](uint32_t a, uint32_t b) { return a | b; }, scratch);
  if (threadIdx.x == 0) ranges[0] = make_float4(range.low, range.high, range.infinite ? 1.0f : 0.0f, 0.0f);
}

template <typename T, bool kVector, int kCached, int kBlock = kThreads>
int8_cuda_status launch_typed(const RowsParams &p, cudaStream_t stream, bool overlap) {
  const bool decompose = p.rule != INT8_CUDA_RULE_NONE;
  if (decompose && p.rule != INT8_CUDA_RULE_ABSOLUTE) {
    Launch launch(dim3(static_cast<unsigned>(p.m)), dim3(kThreads), 0, stream, overlap);
    INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, row_thresholds<T>, p));
  }
  const int64_t words = ceil_div<int64_t>(p.k, 32);
  if (decompose && p.m > kSmallRows && words > 0) {
    Launch launch(dim3(static_cast<unsigned>(words)), dim3(kMaskThreads), 0, stream, overlap);
    INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, column_mask<T, kVector>, p));
  }
  const size_t shared = decompose ? static_cast<size_t>(2 * words + kListed) * 4 : 0;
  const bool tensor = p.granularity == INT8_CUDA_PER_TENSOR;
  auto *kernel = quantize_rows<T, kVector, kCached, kBlock>;
  INT8_CUDA_TRY(allow_shared(kernel, shared));
  if (tensor) {
    Launch launch(dim3(static_cast<unsigned>(p.m)), dim3(kBlock), shared, stream, overlap);
    INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, kernel, p, 1, 0));
    Launch reduce(dim3(1), dim3(kThreads), 0, stream, overlap);
    INT8_CUDA_TRY(cudaLaunchKernelEx(&reduce.config, union_of_ranges, p.ranges, p.m));
  }
  const bool gather = decompose && p.outliers.w != nullptr;
  const int64_t blocks = p.m + (gather ? ceil_div<int64_t>(p.n, kGatherRows) : 0);
  Launch launch(dim3(static_cast<unsigned>(blocks)), dim3(kBlock), shared, stream, overlap);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, kernel, p, 0, tensor ? 1 : 0));
  return INT8_CUDA_OK;
}

template <typename T>
int8_cuda_status launch_16bit(const RowsParams &p, cudaStream_t stream, bool overlap) {
  const bool aligned = p.ldx % kChunk == 0 && reinterpret_cast<uintptr_t>(p.x) % 16 == 0;
  if (aligned && p.m <= kFewRows && p.ldq <= 2 * kThreadsFewRows * kChunk) {
    return launch_typed<T, true, 2, kThreadsFewRows>(p, stream, overlap);
  }
  if (aligned && p.ldq <= 2 * kThreads * kChunk) return launch_typed<T, true, 2>(p, stream, overlap);
  if (aligned && p.ldq <= 8 * kThreads * kChunk) return launch_typed<T, true, 8>(p, stream, overlap);
  return launch_typed<T, false, 0>(p, stream, overlap);
}

}  // namespace

int8_cuda_status launch_rows(const RowsParams &params, cudaStream_t stream, bool overlap) {
  if (params.m == 0) return INT8_CUDA_OK;
  switch (params.element) {
    case INT8_CUDA_F16: return launch_16bit<__half>(params, stream, overlap);
    case INT8_CUDA_BF16: return launch_16bit<__nv_bfloat16>(params, stream, overlap);
    case INT8_CUDA_F32: return launch_typed<float, false, 0>(params, stream, overlap);
    default: return INT8_CUDA_INVALID;
  }
}

}  // namespace int8_cuda
