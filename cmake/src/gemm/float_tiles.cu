// y (+)= x * w^T + bias in floating point for any shape: 128x128 tiles. 16-bit types: cp.async + mma.sync where rows are 16-byte
// aligned; else, and in f32, operands gathered element by element.
#include "gemm/float_linear.cuh"
#include "gemm/mma_tile.cuh"

namespace int8_cuda {
namespace {

using namespace tile;
using Params = int8_cuda_float_linear_params;

// 16 KB each: 48 KB, the static limit.
constexpr int kStages = 3;
constexpr int kStageBytes = (kBm + kBn) * kBk;

// kAsync: k is a multiple of 8, rows are 16-byte aligned.
template <typename T, bool kAsync>
__global__ void __launch_bounds__(kThreads) float_tiles(const __grid_constant__ Params p) {
  __shared__ alignas(128) uint8_t memory[kAsync ? kStages * kStageBytes : (kBm + kBn) * (kStepF32 + 1) * 4];
  const int64_t m0 = static_cast<int64_t>(blockIdx.x) * kBm, n0 = static_cast<int64_t>(blockIdx.y) * kBn;
  const T *x = static_cast<const T *>(p.x), *w = static_cast<const T *>(p.w);
  const int k = static_cast<int>(p.k);
  float f[4][4][4] = {};
  if constexpr (kAsync) {
    const uint32_t base = static_cast<uint32_t>(__cvta_generic_to_shared(memory));
    const int steps = ceil_div(k, kStep);
    auto load = [&](int step) {
      if (step < steps) {
        const uint32_t stage = base + step % kStages * kStageBytes;
#pragma unroll
        for (int i = 0; i < (kBm + kBn) * 4 / kThreads; ++i) {
          const int chunk = threadIdx.x + i * kThreads, row = chunk / 4, column = step * kStep + chunk % 4 * 8;
          const bool of_x = row < kBm;
          const int64_t from = of_x ? m0 + row : n0 + row - kBm;
          const bool inside = column < k && from < (of_x ? p.m : p.n);
          const T *address = of_x ? x + from * p.ldx + column : w + from * k + column;
          copy_async_16(stage + (of_x ? 0 : kBm * kBk) + at(row % kBm, chunk % 4), inside ? address : w, inside);
        }
      }
      copy_async_commit();
    };
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) load(s);
    for (int step = 0; step < steps; ++step) {
      copy_async_wait<kStages - 2>();
      __syncthreads();
      load(step + kStages - 1);
      const uint8_t *stage = memory + step % kStages * kStageBytes;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t a[4][4], b[2][4];
        load_fragments(stage, half, a, b);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) mma_16bit(f[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1], T{});
        }
      }
    }
  } else {
    accumulate_gathered<T, false>(
        f, memory, k, [&](int row, int j) { return m0 + row < p.m ? x[(m0 + row) * p.ldx + j] : from_f32<T>(0.0f); },
        [&](int row, int j) { return n0 + row < p.n ? w[(n0 + row) * k + j] : from_f32<T>(0.0f); });
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int64_t m = m0 + local_row(i, e), n = n0 + local_column(j, e);
        if (m >= p.m || n >= p.n) continue;
        float value = f[i][j][e] + (p.bias != nullptr ? p.bias[n] : 0.0f);
        if (p.store == INT8_CUDA_ACCUMULATE) value += load_element(p.y, m * p.ldy + n, p.y_element);
        store_element(p.y, m * p.ldy + n, p.y_element, value);
      }
    }
  }
}

template <typename T>
int8_cuda_status launch_typed(const Params &p) {
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(p.m, kBm)), static_cast<unsigned>(ceil_div<int64_t>(p.n, kBn)));
  if (grid.y > 65535) return INT8_CUDA_UNSUPPORTED;
  const cudaStream_t stream = static_cast<cudaStream_t>(p.stream);
  const bool aligned = p.k % 8 == 0 && rows_aligned(p.x, p.ldx, p.element) && rows_aligned(p.w, p.k, p.element);
  bool async = false;
  if constexpr (sizeof(T) == 2) {
    async = aligned;
    if (async) float_tiles<T, true><<<grid, kThreads, 0, stream>>>(p);
  }
  if (!async) float_tiles<T, false><<<grid, kThreads, 0, stream>>>(p);
  INT8_CUDA_TRY(cudaGetLastError());
  return INT8_CUDA_OK;
}

template <typename T>
__global__ void __launch_bounds__(256) round_values(const float *from, T *to, int64_t count) {
  pdl_trigger();
  pdl_wait();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i < count) to[i] = from_f32<T>(from[i]);
}

template <typename T>
int8_cuda_status launch_round_typed(const float *from, void *to, int64_t count, cudaStream_t stream, bool overlap) {
  Launch launch(dim3(static_cast<unsigned>(ceil_div<int64_t>(count, 256))), dim3(256), 0, stream, overlap);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, round_values<T>, from, static_cast<T *>(to), count));
  return INT8_CUDA_OK;
}

}  // namespace

int8_cuda_status launch_float_tiles(const Params &p) {
  switch (p.element) {
    case INT8_CUDA_F16: return launch_typed<__half>(p);
    case INT8_CUDA_BF16: return launch_typed<__nv_bfloat16>(p);
    case INT8_CUDA_F32: return launch_typed<float>(p);
    default: return INT8_CUDA_INVALID;
  }
}

int8_cuda_status launch_round(const float *from, void *to, int64_t count, int element, cudaStream_t stream, bool overlap) {
  return element == INT8_CUDA_F16 ? launch_round_typed<__half>(from, to, count, stream, overlap)
                                  : launch_round_typed<__nv_bfloat16>(from, to, count, stream, overlap);
}

}  // namespace int8_cuda
