// Sums, ranges and columns of several ranks. Every rank reads the others' parts over the link between them: with two ranks that is
// no more than any other way would move.
#include "common/launch.cuh"
#include "exchange/barrier.cuh"
#include "exchange/exchange.cuh"
#include "prologue/quantize.cuh"

namespace int8_cuda {
namespace {

constexpr int kThreads = 512;
// 16-byte pieces of each part that a thread has in flight.
constexpr int kPieces = 4;

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

template <typename T>
__global__ void __launch_bounds__(kThreads) exchange_ranges(const __grid_constant__ int8_cuda_exchange_ranges_params p, const uint32_t *mask, bool vector) {
  __shared__ float scratch[kThreads / 32];
  __shared__ uint32_t scratch_u32[kThreads / 32];
  pdl_trigger();
  pdl_wait();
  T *x = static_cast<T *>(p.x);
  const bool decompose = p.rule != INT8_CUDA_RULE_NONE;
  const int ranks = p.signals.ranks;
  float2 *own = reinterpret_cast<float2 *>(p.ranges[p.signals.rank]);
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    Range range;
    for (int64_t k = static_cast<int64_t>(threadIdx.x) * kChunk; k < p.k; k += kThreads * kChunk) {
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
    const auto larger = [](float a, float b) { return fmaxf(a, b); };
    range.low = -block_reduce<kThreads>(-range.low, larger, scratch);
    range.high = block_reduce<kThreads>(range.high, larger, scratch);
    range.infinite = block_reduce<kThreads>(range.infinite, [](uint32_t a, uint32_t b) { return a | b; }, scratch_u32);
    const float nan = __int_as_float(0x7fc00000);
    if (threadIdx.x == 0) own[row] = range.infinite ? make_float2(nan, nan) : make_float2(range.low, range.high);
  }
  rank_barrier(p.signals);
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    if (threadIdx.x >= INT8_CUDA_RANGE_COLUMNS) continue;
    float value = 0.0f;
    if (threadIdx.x < 2) {
      for (int rank = 0; rank < ranks; ++rank) {
        const float2 range = load_of_peer(reinterpret_cast<const float2 *>(p.ranges[rank]) + row);
        const float end = threadIdx.x == 0 ? range.x : range.y;
        // A NaN stays.
        if (!(end == end) || (value == value && (threadIdx.x == 0 ? end < value : end > value))) value = end;
      }
    }
    x[row * p.ldx + p.k + threadIdx.x] = from_f32<T>(value);
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
  Launch launch(dim3(blocks_for(p.rows, device)), dim3(kThreads), 0, static_cast<cudaStream_t>(p.stream), device.major >= 9);
  const bool vector = reinterpret_cast<uintptr_t>(p.x) % 16 == 0 && p.ldx % kChunk == 0;
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, exchange_ranges<T>, p, mask, vector));
  return INT8_CUDA_OK;
}

}  // namespace

int8_cuda_status launch_exchange_sum(const int8_cuda_exchange_sum_params &p, const Device &device) {
  const int64_t pieces = ceil_div<int64_t>(p.rows * p.width, 4);
  // One piece a thread for a few rows: their time is that of the barrier.
  Launch launch(dim3(blocks_for(ceil_div<int64_t>(pieces, kThreads), device)), dim3(kThreads), 0, static_cast<cudaStream_t>(p.stream), device.major >= 9);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, exchange_sum, p));
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
