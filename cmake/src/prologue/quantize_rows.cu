// The prologue in several kernels, for every size and type: thresholds and outlier mask first, then one block a row, which
// keeps the row's values in registers between range and rounding, so that x is read from memory once.
#include "common/launch.cuh"
#include "prologue/outlier_columns.cuh"
#include "prologue/prologue.cuh"

namespace int8_cuda {
namespace {

// Rows whose loads are in flight at a time where a block searches all of them for outliers.
constexpr int kSmallBatch = 8;
// Threads a row. With few rows latency counts, and a row gets a whole multiprocessor.
constexpr int kThreads = 256, kThreadsNarrow = 64, kThreadsFewRows = 1024;
// About as many as run at a time on a large device.
constexpr int kManyRows = 2048;
// Rows of W, and of x, that a block gathers: one 16-byte piece a thread and panel of 64 columns.
__host__ __device__ constexpr int gather_rows(int block) { return block / (64 / kChunk); }

// Lists the outlier columns, and writes gather_rows rows of the compact operands in 16-byte pieces.
template <typename T, int kBlock>
__device__ void gather(const PrologueParams &p, OutlierColumns<kBlock> &columns, int words, uint32_t *scratch) {
  columns.scan(words, scratch);
  if (blockIdx.x == 0 && threadIdx.x == 0) *p.outliers.count = columns.count;
  const bool relative = p.rule != INT8_CUDA_RULE_ABSOLUTE;
  const bool by_value = p.outlier_granularity == INT8_CUDA_VALUE;
  constexpr int kRows = gather_rows(kBlock);
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kRows;
  // 8 elements are 16 bytes of a 16-bit type, 32 of f32.
  auto fill = [&](void *to, int64_t rows, uint32_t first, uint32_t listed, auto value) {
    if (to == nullptr) return;
    const uint32_t pieces = round_up(listed, 64u) / kChunk;
    for (uint32_t i = threadIdx.x; i < kRows * pieces; i += kBlock) {
      const int64_t row = first_row + i / pieces;
      const uint32_t j = i % pieces * kChunk;
      if (row >= rows || first + j >= p.outliers.ld) continue;
      alignas(16) T out[kChunk];
#pragma unroll
      for (int e = 0; e < kChunk; ++e) out[e] = j + e < listed ? value(row, columns.list[j + e]) : from_f32<T>(0.0f);
      T *at = static_cast<T *>(to) + outlier_index(rows, row, first + j);
#pragma unroll
      for (int e = 0; e < static_cast<int>(sizeof out / 16); ++e) {
        reinterpret_cast<uint4 *>(at)[e] = reinterpret_cast<const uint4 *>(out)[e];
      }
    }
  };
  for (uint32_t first = 0; first < columns.count; first += kListed) {
    const uint32_t listed = columns.make_list(words, first);
    if (blockIdx.x == 0) {
      for (uint32_t j = threadIdx.x; j < listed; j += kBlock) p.outliers.columns[first + j] = columns.list[j];
    }
    fill(p.outliers.w, p.n, first, listed, [&](int64_t n, int k) {
      if (!p.weights_are_codes) return from_f32<T>(outlier_weight<T>(p.weight, n, k));
      const int zero = p.weight.zero_points != nullptr ? p.weight.zero_points[n] : 0;
      return from_f32<T>(static_cast<float>(p.weight.codes[n * p.weight.ldw + k] - zero));
    });
    fill(p.outliers.x, p.m, first, listed, [&](int64_t m, int k) {
      const T v = static_cast<const T *>(p.x)[m * p.ldx + k];
      const float threshold = relative ? p.thresholds[m] : p.threshold;
      return !by_value || fabsf(to_f32(v)) >= threshold ? v : from_f32<T>(0.0f);
    });
  }
}

// Kernels for few rows find the outlier columns in every block: cheaper than another launch. The others lack the registers.
template <int kBlock>
constexpr bool kFindsMask = kBlock == kThreadsFewRows;

template <typename T, bool kVector, int kBlock>
__device__ __forceinline__ void find_mask(const PrologueParams &p, bool relative, int words, uint32_t *mask) {
  const T *x = static_cast<const T *>(p.x);
  uint8_t *bytes = reinterpret_cast<uint8_t *>(mask);
  // Short rows: two threads share the rows of a chunk.
  const bool share = words * 8 <= kBlock;
  const int pieces = words * 4, half = share && static_cast<int>(threadIdx.x) >= pieces ? 1 : 0;
  if (share) {
    for (int i = threadIdx.x; i < words; i += kBlock) mask[i] = 0;
    __syncthreads();
  }
  for (int chunk = static_cast<int>(threadIdx.x) - half * pieces; chunk < pieces; chunk += kBlock) {
    uint32_t hits = 0;
    for (int first = half * kSmallBatch; first < p.m; first += (share ? 2 : 1) * kSmallBatch) {
      T v[kSmallBatch][kChunk];
#pragma unroll
      for (int r = 0; r < kSmallBatch; ++r) {
        const int64_t row = min(static_cast<int64_t>(first + r), p.m - 1);  // the last row again does no harm
        load_chunk<T, kVector>(x + row * p.ldx, static_cast<int64_t>(chunk) * kChunk, p.k, v[r]);
      }
#pragma unroll
      for (int r = 0; r < kSmallBatch; ++r) {
        if (first + r >= p.m) break;
        const float threshold = relative ? p.thresholds[first + r] : p.threshold;
        hits |= hits_of<T, kVector>(v[r], threshold, floor_of<T, kVector>(threshold));
      }
    }
    if (!share) bytes[chunk] = static_cast<uint8_t>(hits);
    if (share && hits != 0) atomicOr(&mask[chunk / 4], hits << (chunk % 4 * kChunk));
  }
}

// kCached: chunks of a row that a thread keeps in registers (0: it reads the row again, through the cache).
template <typename T, bool kVector, int kCached, int kBlock>
__global__ void __launch_bounds__(kBlock, kBlock == kThreads && kCached == 2 ? 7 : 1) quantize_rows(PrologueParams p, unsigned gather_blocks, int ranges_only, int given_range) {
  extern __shared__ uint32_t shared[];
  __shared__ float scratch_f32[kBlock / 32];
  __shared__ uint32_t scratch[kBlock / 32];
  __shared__ int32_t scratch_i32[kBlock / 32];
  const int words = static_cast<int>(ceil_div<int64_t>(p.k, 32));
  OutlierColumns<kBlock> columns{shared, shared + words, reinterpret_cast<int32_t *>(shared + 2 * words), 0};
  const bool decompose = p.rule != INT8_CUDA_RULE_NONE;
  const bool relative = decompose && p.rule != INT8_CUDA_RULE_ABSOLUTE;
  const bool by_value = p.outlier_granularity == INT8_CUDA_VALUE;
  const T *x = static_cast<const T *>(p.x);
  // From the last row to the first: the outlier mask's kernel has left the last ones in the L2 cache.
  const int64_t m = blockIdx.x < gather_blocks ? -1 : p.m - 1 - (blockIdx.x - gather_blocks);
  const int chunks = static_cast<int>(p.ldq / kChunk);
  if (p.early) pdl_trigger();
  pdl_wait();

  // All of a row's loads are issued before the first is waited for.
  T cache[kCached == 0 ? 1 : kCached][kChunk];
  if constexpr (kCached > 0) {
    if (m >= 0) {
#pragma unroll
      for (int c = 0; c < kCached; ++c) {
        const int chunk = threadIdx.x + c * kBlock;
        if (chunk < chunks) load_chunk<T, kVector>(x + m * p.ldx, static_cast<int64_t>(chunk) * kChunk, p.k, cache[c]);
      }
    }
  }

  if (decompose) {
    if constexpr (kFindsMask<kBlock>) {
      find_mask<T, kVector, kBlock>(p, relative, words, columns.mask);
    } else {
      for (int i = threadIdx.x; i < words; i += kBlock) columns.mask[i] = p.outliers.mask[i];
    }
    __syncthreads();
  }

  if (m < 0) {
    gather<T, kBlock>(p, columns, words, scratch);
    return;
  }

  const T *row = x + m * p.ldx;
  const float threshold = relative ? p.thresholds[m] : p.threshold;
  const uint8_t *mask_bytes = reinterpret_cast<const uint8_t *>(columns.mask);
  auto for_each_chunk = [&](auto body) {
    if constexpr (kCached > 0) {
#pragma unroll
      for (int c = 0; c < kCached; ++c) {
        const int chunk = threadIdx.x + c * kBlock;
        if (chunk < chunks) body(chunk, cache[c]);
      }
    } else {
      for (int chunk = threadIdx.x; chunk < chunks; chunk += kBlock) {
        load_chunk<T, kVector>(row, static_cast<int64_t>(chunk) * kChunk, p.k, cache[0]);
        body(chunk, cache[0]);
      }
    }
  };
  // Bits of the chunk's values that reach the threshold themselves, and of those in outlier columns.
  const uint32_t floor = floor_of<T, kVector>(threshold);
  auto own_hits = [&](const T(&v)[kChunk]) { return hits_of<T, kVector>(v, threshold, floor); };
  auto column_hits = [&](int chunk) { return chunk < words * 4 ? static_cast<uint32_t>(mask_bytes[chunk]) : 0u; };

  Range range;
  if (given_range) {
    const float4 whole = p.ranges[0];
    range.low = whole.x;
    range.high = whole.y;
    range.infinite = whole.z != 0.0f;
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
      for_each_chunk([&](int chunk, const T(&v)[kChunk]) {
        const uint32_t skip = skipped(chunk, v);
        packed.add_chunk(v, skip, both_ends);
      });
      const uint32_t most = block_reduce<kBlock>(larger_of_pair(packed.most), [](uint32_t a, uint32_t b) { return max(a, b); }, scratch);
      range.infinite = most >= Packed<T>::kInfinity;
      if (both_ends) {
        const float2 low = Packed<T>::unpack(packed.low), high = Packed<T>::unpack(packed.high);
        reduce(fminf(low.x, low.y), fmaxf(high.x, high.y));
      } else {
        range.high = Packed<T>::unpack(most).x;
      }
    } else {
      for_each_chunk([&](int chunk, const T(&v)[kChunk]) {
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

  const QuantizationParameters parameters(range, p.encoding);
  int32_t sum = 0;
  int8_t *codes = p.codes + m * p.ldq;
  for_each_chunk([&](int chunk, const T(&v)[kChunk]) {
    uint32_t out = !decompose ? 0u : by_value ? own_hits(v) : column_hits(chunk);
    uint32_t packed[2];
    encode_chunk<T, kVector>(v, parameters, p.encoding == INT8_CUDA_ZEROPOINT, out, p.k - static_cast<int64_t>(chunk) * kChunk, packed);
    if (p.code_sums != nullptr) {
      sum = __dp4a(static_cast<int>(packed[0]), 0x01010101, sum);
      sum = __dp4a(static_cast<int>(packed[1]), 0x01010101, sum);
    }
    *reinterpret_cast<uint2 *>(codes + static_cast<int64_t>(chunk) * kChunk) = make_uint2(packed[0], packed[1]);
  });
  if (p.code_sums != nullptr) sum = block_reduce<kBlock>(sum, [](int32_t a, int32_t b) { return a + b; }, scratch_i32);
  if (threadIdx.x == 0) {
    p.scales[m] = parameters.scale;
    if (p.zero_points != nullptr) p.zero_points[m] = parameters.zero;
    if (p.code_sums != nullptr) p.code_sums[m] = sum;
  }
}

// The union of all rows' ranges, in ranges[0].
__global__ void __launch_bounds__(kThreads) union_of_ranges(float4 *ranges, int64_t rows) {
  __shared__ float scratch_f32[kThreads / 32];
  __shared__ uint32_t scratch[kThreads / 32];
  pdl_trigger();
  pdl_wait();
  Range range;
  for (int64_t m = threadIdx.x; m < rows; m += kThreads) {
    range.low = fminf(range.low, ranges[m].x);
    range.high = fmaxf(range.high, ranges[m].y);
    range.infinite |= ranges[m].z != 0.0f;
  }
  range.low = block_reduce<kThreads>(range.low, [](float a, float b) { return fminf(a, b); }, scratch_f32);
  range.high = block_reduce<kThreads>(range.high, [](float a, float b) { return fmaxf(a, b); }, scratch_f32);
  range.infinite = block_reduce<kThreads>(range.infinite, [](uint32_t a, uint32_t b) { return a | b; }, scratch);
  if (threadIdx.x == 0) ranges[0] = make_float4(range.low, range.high, range.infinite ? 1.0f : 0.0f, 0.0f);
}

template <typename T, bool kVector, int kCached, int kBlock = kThreads>
int8_cuda_status launch_typed(const PrologueParams &p, cudaStream_t stream, bool overlap) {
  const bool decompose = p.rule != INT8_CUDA_RULE_NONE;
  INT8_CUDA_PASS(launch_thresholds(p, stream, overlap));
  const int64_t words = ceil_div<int64_t>(p.k, 32);
  if (decompose && !kFindsMask<kBlock> && words > 0) INT8_CUDA_PASS(launch_outlier_mask(p, kVector, stream, overlap));
  const size_t shared = decompose ? static_cast<size_t>(2 * words + kListed) * 4 : 0;
  const bool tensor = p.granularity == INT8_CUDA_PER_TENSOR;
  auto *kernel = quantize_rows<T, kVector, kCached, kBlock>;
  INT8_CUDA_TRY(allow_shared(kernel, shared));
  if (tensor) {
    Launch launch(dim3(static_cast<unsigned>(p.m)), dim3(kBlock), shared, stream, overlap);
    INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, kernel, p, 0u, 1, 0));
    Launch reduce(dim3(1), dim3(kThreads), 0, stream, overlap);
    INT8_CUDA_TRY(cudaLaunchKernelEx(&reduce.config, union_of_ranges, p.ranges, p.m));
  }
  int64_t gather_blocks = 0;
  if (decompose && p.outliers.count != nullptr) {
    const int64_t of_w = p.outliers.w != nullptr ? p.n : 0, of_x = p.outliers.x != nullptr ? p.m : 1;
    gather_blocks = ceil_div<int64_t>(of_w > of_x ? of_w : of_x, gather_rows(kBlock));
  }
  Launch launch(dim3(static_cast<unsigned>(gather_blocks + p.m)), dim3(kBlock), shared, stream, overlap);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, kernel, p, static_cast<unsigned>(gather_blocks), 0, tensor ? 1 : 0));
  return INT8_CUDA_OK;
}

template <typename T>
int8_cuda_status launch_16bit(const PrologueParams &p, cudaStream_t stream, bool overlap) {
  const bool aligned = p.ldx % kChunk == 0 && reinterpret_cast<uintptr_t>(p.x) % 16 == 0;
  if (!aligned) return launch_typed<T, false, 0>(p, stream, overlap);
  // Where weights are gathered, many small blocks are faster.
  if (p.m <= kFewRows && p.outliers.w == nullptr && p.ldq <= 2 * kThreadsFewRows * kChunk) {
    return launch_typed<T, true, 2, kThreadsFewRows>(p, stream, overlap);
  }
  // Many rows: throughput counts. Eight chunks a thread are 8 KB in flight a block; 16 such blocks fill an SM's registers.
  // Fewer: latency counts, and a row gets four times the threads.
  if (p.ldq <= 8 * kThreadsNarrow * kChunk) {
    return p.m >= kManyRows ? launch_typed<T, true, 8, kThreadsNarrow>(p, stream, overlap)
                            : launch_typed<T, true, 2>(p, stream, overlap);
  }
  if (p.ldq <= 8 * kThreads * kChunk) return launch_typed<T, true, 8>(p, stream, overlap);
  return launch_typed<T, false, 0>(p, stream, overlap);
}

}  // namespace

int8_cuda_status launch_quantize_rows(const PrologueParams &params, cudaStream_t stream, bool overlap) {
  if (params.m == 0) return INT8_CUDA_OK;
  switch (params.element) {
    case INT8_CUDA_F16: return launch_16bit<__half>(params, stream, overlap);
    case INT8_CUDA_BF16: return launch_16bit<__nv_bfloat16>(params, stream, overlap);
    case INT8_CUDA_F32: return launch_typed<float, false, 0>(params, stream, overlap);
    default: return INT8_CUDA_INVALID;
  }
}

}  // namespace int8_cuda
