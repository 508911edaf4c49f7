// Sums, ranges and columns of several ranks. Every rank reads the others' parts over the link between them: with two ranks that is
// no more than any other way would move.
#include "common/launch.cuh"
#include "exchange/barrier.cuh"
#include "exchange/exchange.cuh"
#include "prologue/activation.cuh"
#include "prologue/quantize.cuh"

namespace int8_cuda {
namespace {

// The least and the greatest, where a NaN stays.
__device__ __forceinline__ float least(float x, float y) { return x <= y || x != x ? x : y; }
__device__ __forceinline__ float greatest(float x, float y) { return x >= y || x != x ? x : y; }

constexpr int kThreads = 512;
// 16-byte pieces of each part that a thread has in flight.
constexpr int kPieces = 8;

__global__ void __launch_bounds__(kThreads) exchange_sum(const __grid_constant__ int8_cuda_exchange_sum_params p) {
  pdl_trigger();
  pdl_wait();
  rank_barrier(p.signals);
  const int64_t count = p.rows * p.width, pieces = count / 4, stride = static_cast<int64_t>(gridDim.x) * kThreads;
  const int ranks = p.signals.ranks;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (int64_t base = thread; base < pieces; base += stride * kPieces) {
    float4 sum[kPieces];
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int64_t at = base + i * stride;
      if (at < pieces) sum[i] = load_of_peer(reinterpret_cast<const float4 *>(p.parts[0]) + at);
    }
    for (int rank = 1; rank < ranks; ++rank) {
      float4 part[kPieces];
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const int64_t at = base + i * stride;
        if (at < pieces) part[i] = load_of_peer(reinterpret_cast<const float4 *>(p.parts[rank]) + at);
      }
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        sum[i] = make_float4(sum[i].x + part[i].x, sum[i].y + part[i].y, sum[i].z + part[i].z, sum[i].w + part[i].w);
      }
    }
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int64_t at = base + i * stride;
      if (at >= pieces) break;
      float4 *out = reinterpret_cast<float4 *>(p.out) + at;
      if (p.store == INT8_CUDA_ACCUMULATE) {
        const float4 before = *out;
        sum[i] = make_float4(before.x + sum[i].x, before.y + sum[i].y, before.z + sum[i].z, before.w + sum[i].w);
      }
      *out = sum[i];
    }
  }
  for (int64_t at = pieces * 4 + thread; at < count; at += stride) {
    float sum = load_of_peer(p.parts[0] + at);
    for (int rank = 1; rank < ranks; ++rank) sum += load_of_peer(p.parts[rank] + at);
    p.out[at] = p.store == INT8_CUDA_ACCUMULATE ? p.out[at] + sum : sum;
  }
  if (p.waits) rank_barrier(p.signals);
}

// The same for a few rows: every thread sends its four numbers and waits for those of the others alone.
__global__ void __launch_bounds__(kThreads) exchange_small_sum(const __grid_constant__ int8_cuda_exchange_sum_params p) {
  pdl_trigger();
  const int8_cuda_signals &s = p.signals;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  pdl_wait();
  uint32_t *mark = static_cast<uint32_t *>(s.of_rank[s.rank]) + blockIdx.x * kSignalWords + kSumEpoch;
  const uint32_t epoch = *const_cast<volatile uint32_t *>(mark) + 1;
  if (at < p.rows * p.width / 4) {
    const float4 own = reinterpret_cast<const float4 *>(p.parts[s.rank])[at];
    for (int peer = 0; peer < s.ranks; ++peer) {
      if (peer == s.rank) continue;
      uint2 *to = packets(s, peer, s.rank, epoch) + at * 4;
      send(to, own.x, own.y, epoch);
      send(to + 2, own.z, own.w, epoch);
    }
    float4 *out = reinterpret_cast<float4 *>(p.out) + at;
    const float4 before = p.store == INT8_CUDA_ACCUMULATE ? *out : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int rank = 0; rank < s.ranks; ++rank) {
      float4 part = own;
      if (rank != s.rank) {
        const uint2 *from = packets(s, s.rank, rank, epoch) + at * 4;
        const float2 low = receive(s, from, epoch), high = receive(s, from + 2, epoch);
        part = make_float4(low.x, low.y, high.x, high.y);
      }
      sum = rank == 0 ? part : make_float4(sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w);
    }
    *out = p.store == INT8_CUDA_ACCUMULATE ? make_float4(before.x + sum.x, before.y + sum.y, before.z + sum.z, before.w + sum.w) : sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) *mark = epoch;
}

// Ranges of a few rows, with the function of the input: a block has some columns of all rows, a thread eight of them, so that a block
// finds its outlier columns by itself. It sends its part of each row's range to every rank; then each block waits for all parts of
// some rows.
constexpr int kSmallThreads = 128;
template <typename T>
__global__ void __launch_bounds__(kSmallThreads) exchange_small_ranges(const __grid_constant__ int8_cuda_exchange_ranges_params p, bool by_column) {
  constexpr int kWarps = kSmallThreads / 32;
  __shared__ float lows[kRangeRows][kWarps], highs[kRangeRows][kWarps];
  pdl_trigger();
  const int8_cuda_signals &s = p.signals;
  const int rows = static_cast<int>(p.rows), parts = static_cast<int>(gridDim.x), part = static_cast<int>(blockIdx.x);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t column = (static_cast<int64_t>(part) * kSmallThreads + threadIdx.x) * kChunk;
  const bool inside = column < p.k, decompose = p.rule != INT8_CUDA_RULE_NONE;
  const float threshold = decompose ? p.threshold : infinity(), nan = __int_as_float(0x7fc00000);
  T *x = static_cast<T *>(p.x);
  pdl_wait();
  // One mark for all blocks, which differ in number from exchange to exchange.
  uint32_t *mark = static_cast<uint32_t *>(s.of_rank[s.rank]) + kRangeEpoch;
  const uint32_t epoch = *const_cast<volatile uint32_t *>(mark) + 1;

  uint32_t outliers = 0;  // of this thread's columns: in any row
  for (int row = 0; row < rows && inside; ++row) {
    const T *from = static_cast<const T *>(p.input) + row * p.ldi + column;
    T v[kChunk], second[kChunk];
    load_chunk<T, true>(from, 0, kChunk, v);
    if (p.transform.function == INT8_CUDA_GATED) load_chunk<T, true>(from + p.k, 0, kChunk, second);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      float value = to_f32(v[i]);
      if (p.transform.function != INT8_CUDA_IDENTITY) value = activate(value, p.transform.activation);
      if (p.transform.function == INT8_CUDA_GATED) value *= to_f32(second[i]);
      v[i] = from_f32<T>(value);
      if (decompose && fabsf(to_f32(v[i])) >= threshold) outliers |= 1u << i;
    }
    *reinterpret_cast<uint4 *>(x + row * p.ldx + column) = *reinterpret_cast<const uint4 *>(v);
  }
  for (int row = 0; row < rows; ++row) {
    Range range;
    if (inside) {
      T v[kChunk];
      load_chunk<T, true>(x + row * p.ldx + column, 0, kChunk, v);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const float value = to_f32(v[i]);
        const bool outlier = by_column ? (outliers >> i & 1u) != 0 : decompose && fabsf(value) >= threshold;
        if (!outlier) range.add(value);
      }
    }
    if (range.infinite) range.low = range.high = nan;
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      range.low = least(range.low, __shfl_xor_sync(0xffffffffu, range.low, offset));
      range.high = greatest(range.high, __shfl_xor_sync(0xffffffffu, range.high, offset));
    }
    if (lane == 0) {
      lows[row][warp] = range.low;
      highs[row][warp] = range.high;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < rows * s.ranks; i += kSmallThreads) {
    const int row = i % rows, to = i / rows;
    float low = lows[row][0], high = highs[row][0];
    for (int w = 1; w < kWarps; ++w) {
      low = least(low, lows[row][w]);
      high = greatest(high, highs[row][w]);
    }
    send(packets(s, to, s.rank, epoch) + INT8_CUDA_PACKETS + (row * kRangeParts + part) * 2, low, high, epoch);
  }
  // The parts of all ranks: a warp a row.
  for (int row = part * kWarps + warp; row < rows; row += parts * kWarps) {
    float low = 0.0f, high = 0.0f;
    for (int i = lane; i < parts * s.ranks; i += 32) {
      const float2 range = receive(s, packets(s, s.rank, i / parts, epoch) + INT8_CUDA_PACKETS + (row * kRangeParts + i % parts) * 2, epoch);
      low = least(low, range.x);
      high = greatest(high, range.y);
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      low = least(low, __shfl_xor_sync(0xffffffffu, low, offset));
      high = greatest(high, __shfl_xor_sync(0xffffffffu, high, offset));
    }
    for (int i = lane; i < INT8_CUDA_RANGE_COLUMNS; i += 32) {
      x[row * p.ldx + p.k + i] = from_f32<T>(i == 0 ? low : i == 1 ? high : 0.0f);
    }
  }
  __syncthreads();
  // The last block has seen all others read it.
  if (threadIdx.x == 0 && atomicAdd(mark + 1, 1u) == gridDim.x - 1) {
    mark[1] = 0;
    *mark = epoch;
  }
}

// A warp a row.
template <typename T>
__global__ void __launch_bounds__(kThreads) exchange_ranges(const __grid_constant__ int8_cuda_exchange_ranges_params p, const uint32_t *mask, bool vector) {
  constexpr int kWarps = kThreads / 32;
  pdl_trigger();
  pdl_wait();
  T *x = static_cast<T *>(p.x);
  const bool decompose = p.rule != INT8_CUDA_RULE_NONE;
  const int ranks = p.signals.ranks, lane = threadIdx.x % 32;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32, stride = static_cast<int64_t>(gridDim.x) * kWarps;
  const float nan = __int_as_float(0x7fc00000);
  float2 *own = reinterpret_cast<float2 *>(p.ranges[p.signals.rank]);
  for (int64_t row = first; row < p.rows; row += stride) {
    Range range;
    for (int64_t k = static_cast<int64_t>(lane) * kChunk; k < p.k; k += 32 * kChunk) {
      T v[kChunk];
      if constexpr (sizeof(T) == 2) {
        if (vector) {
          load_chunk<T, true>(x + row * p.ldx, k, p.k, v);
        } else {
          load_chunk<T, false>(x + row * p.ldx, k, p.k, v);
        }
      } else {
        load_chunk<T, false>(x + row * p.ldx, k, p.k, v);
      }
      const uint32_t skip = mask == nullptr ? 0u : mask[k / 32] >> (k % 32);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const float value = to_f32(v[i]);
        const bool outlier = decompose && (mask == nullptr ? fabsf(value) >= p.threshold : (skip >> i & 1u) != 0);
        if (!outlier) range.add(value);
      }
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      range.low = fminf(range.low, __shfl_xor_sync(0xffffffffu, range.low, offset));
      range.high = fmaxf(range.high, __shfl_xor_sync(0xffffffffu, range.high, offset));
      range.infinite |= __shfl_xor_sync(0xffffffffu, range.infinite, offset);
    }
    if (lane == 0) own[row] = range.infinite ? make_float2(nan, nan) : make_float2(range.low, range.high);
  }
  rank_barrier(p.signals);
  for (int64_t row = first; row < p.rows; row += stride) {
    float low = 0.0f, high = 0.0f;
    for (int rank = 0; rank < ranks; ++rank) {
      const float2 range = load_of_peer(reinterpret_cast<const float2 *>(p.ranges[rank]) + row);
      low = least(low, range.x);
      high = greatest(high, range.y);
    }
    for (int i = lane; i < INT8_CUDA_RANGE_COLUMNS; i += 32) {
      x[row * p.ldx + p.k + i] = from_f32<T>(i == 0 ? low : i == 1 ? high : 0.0f);
    }
  }
}

__global__ void __launch_bounds__(kThreads) exchange_columns(const __grid_constant__ int8_cuda_exchange_columns_params p) {
  pdl_trigger();
  pdl_wait();
  rank_barrier(p.signals);
  if (p.signals.rank == 0) {
    int64_t all = 0;
    for (int rank = 0; rank < p.signals.ranks; ++rank) all += p.widths[rank];
    int64_t first = 0;
    for (int rank = 0; rank < p.signals.ranks; first += p.widths[rank++]) {
      const int64_t width = p.widths[rank], stride = static_cast<int64_t>(gridDim.x) * kThreads;
      for (int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < p.rows * width; at += stride) {
        p.out[at / width * all + first + at % width] = load_of_peer(p.parts[rank] + at);
      }
    }
  }
  rank_barrier(p.signals);
}

// All blocks have to run at the same time, and a block of the next kernel may take their place only once they all run.
unsigned blocks_for(int64_t wanted, const Device &device) {
  const int64_t most = device.multiprocessors < kSignalBlocks ? device.multiprocessors : kSignalBlocks;
  return static_cast<unsigned>(wanted < 1 ? 1 : wanted > most ? most : wanted);
}

template <typename T>
int8_cuda_status launch_ranges(const int8_cuda_exchange_ranges_params &p, const uint32_t *mask, const Device &device) {
  Launch launch(dim3(blocks_for(ceil_div<int64_t>(p.rows, kThreads / 32), device)), dim3(kThreads), 0, static_cast<cudaStream_t>(p.stream),
                device.major >= 9);
  const bool vector = reinterpret_cast<uintptr_t>(p.x) % 16 == 0 && p.ldx % kChunk == 0;
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, exchange_ranges<T>, p, mask, vector));
  return INT8_CUDA_OK;
}

}  // namespace

int8_cuda_status launch_exchange_sum(const int8_cuda_exchange_sum_params &p, const Device &device) {
  const int64_t pieces = ceil_div<int64_t>(p.rows * p.width, 4);
  if (p.rows * p.width <= INT8_CUDA_PACKETS && p.rows * p.width % 4 == 0 && !p.waits) {
    Launch launch(dim3(static_cast<unsigned>(ceil_div<int64_t>(pieces, kThreads))), dim3(kThreads), 0, static_cast<cudaStream_t>(p.stream),
                  device.major >= 9);
    INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, exchange_small_sum, p));
    return INT8_CUDA_OK;
  }
  // One piece a thread for a few rows: their time is that of the barrier.
  Launch launch(dim3(blocks_for(ceil_div<int64_t>(pieces, kThreads), device)), dim3(kThreads), 0, static_cast<cudaStream_t>(p.stream), device.major >= 9);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, exchange_sum, p));
  return INT8_CUDA_OK;
}

bool small_ranges_support(const int8_cuda_exchange_ranges_params &p) {
  const auto aligned = [](const void *base, int64_t ld) { return reinterpret_cast<uintptr_t>(base) % 16 == 0 && ld % kChunk == 0; };
  const bool function = p.transform.function == INT8_CUDA_IDENTITY || p.transform.function == INT8_CUDA_ACTIVATION || p.transform.function == INT8_CUDA_GATED;
  return p.rows <= kRangeRows && p.k % kChunk == 0 && p.k <= kRangeParts * kSmallThreads * kChunk && p.element != INT8_CUDA_F32 &&
         p.input_element == p.element && function && aligned(p.input, p.ldi) && aligned(p.x, p.ldx);
}

int8_cuda_status launch_small_ranges(const int8_cuda_exchange_ranges_params &p, bool by_column, const Device &device) {
  const int64_t parts = ceil_div<int64_t>(p.k, kSmallThreads * kChunk);
  Launch launch(dim3(static_cast<unsigned>(parts)), dim3(kSmallThreads), 0, static_cast<cudaStream_t>(p.stream), device.major >= 9);
  if (p.element == INT8_CUDA_F16) {
    INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, exchange_small_ranges<__half>, p, by_column));
  } else {
    INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, exchange_small_ranges<__nv_bfloat16>, p, by_column));
  }
  return INT8_CUDA_OK;
}

int8_cuda_status launch_exchange_ranges(const int8_cuda_exchange_ranges_params &p, const uint32_t *mask, const Device &device) {
  switch (p.element) {
    case INT8_CUDA_F16: return launch_ranges<__half>(p, mask, device);
    case INT8_CUDA_BF16: return launch_ranges<__nv_bfloat16>(p, mask, device);
    case INT8_CUDA_F32: return launch_ranges<float>(p, mask, device);
    default: return INT8_CUDA_INVALID;
  }
}

int8_cuda_status launch_exchange_columns(const int8_cuda_exchange_columns_params &p, const Device &device) {
  Launch launch(dim3(blocks_for(device.multiprocessors, device)), dim3(kThreads), 0, static_cast<cudaStream_t>(p.stream), device.major >= 9);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, exchange_columns, p));
  return INT8_CUDA_OK;
}

}  // namespace int8_cuda
