// y (+)= x * w^T + bias in floating point for any shape: tiles of 128x128. 16-bit types: the ring of stages where rows are 16-byte
// aligned; else, and in f32, operands gathered element by element.
#include "gemm/float_linear.cuh"
#include "gemm/mma_tile.cuh"

namespace int8_cuda {
namespace {

using Params = int8_cuda_float_linear_params;
// 48 KB, the static limit.
using Tile = tile::Form<128, 128, 2, 4, 3, 1>;

// kAsync: k is a multiple of 8, rows are 16-byte aligned.
template <typename T, bool kAsync>
__global__ void __launch_bounds__(Tile::kThreads) float_tiles(const __grid_constant__ Params p) {
#if __CUDA_ARCH__ >= 800
  __shared__ alignas(128) uint8_t memory[Tile::kBytes];
  const int64_t m0 = static_cast<int64_t>(blockIdx.x) * Tile::kBm, n0 = static_cast<int64_t>(blockIdx.y) * Tile::kBn;
  const int rows = static_cast<int>(min(p.m - m0, int64_t{Tile::kBm})), columns = static_cast<int>(min(p.n - n0, int64_t{Tile::kBn}));
  const T *x = static_cast<const T *>(p.x) + m0 * p.ldx, *w = static_cast<const T *>(p.w) + n0 * p.k;
  const int k = static_cast<int>(p.k);
  tile::Part<Tile, T> part(memory);
  auto f = part.accumulators();
  cute::clear(f);
  if constexpr (kAsync) {
    const int steps = ceil_div(k, tile::kOutlierStep);
    const tile::LoadsA<Tile> load_x(x, p.ldx * 2, rows);
    const tile::LoadsB<Tile> load_w(w, p.k * 2, columns);
    const auto load = [&](int step, int stage) {
      if (step >= steps) return;
      const int byte = step * tile::kStepBytes;
      load_x(Tile::a_of(memory, stage), byte, byte + load_x.byte() < 2 * k);
      load_w(Tile::b_of(memory, stage), byte, byte + load_w.byte() < 2 * k);
    };
    auto ring = tile::ring_of(part, load);
    ring.run(steps, [&](int half) { part.multiply_16bit(half, f); });
  } else {
    tile::accumulate_gathered<false>(
        part, f, k, [&](int row, int j) { return row < rows ? x[row * p.ldx + j] : from_f32<T>(0.0f); },
        [&](int row, int j) { return row < columns ? w[static_cast<int64_t>(row) * k + j] : from_f32<T>(0.0f); });
  }
  const auto place = part.places();
#pragma unroll
  for (int i = 0; i < cute::size(f); ++i) {
    const int row = static_cast<int>(cute::get<0>(place(i))), column = static_cast<int>(cute::get<1>(place(i)));
    if (row >= rows || column >= columns) continue;
    const int64_t m = m0 + row, n = n0 + column;
    float value = f(i) + (p.bias != nullptr ? p.bias[n] : 0.0f);
    if (p.store == INT8_CUDA_ACCUMULATE) value += load_element(p.y, m * p.ldy + n, p.y_element);
    store_element(p.y, m * p.ldy + n, p.y_element, value);
  }
#endif
}

template <typename T>
int8_cuda_status launch_typed(const Params &p) {
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(p.m, Tile::kBm)), static_cast<unsigned>(ceil_div<int64_t>(p.n, Tile::kBn)));
  if (grid.y > 65535) return INT8_CUDA_UNSUPPORTED;
  const cudaStream_t stream = static_cast<cudaStream_t>(p.stream);
  const bool aligned = p.k % 8 == 0 && rows_aligned(p.x, p.ldx, p.element) && rows_aligned(p.w, p.k, p.element);
  bool async = false;
  if constexpr (sizeof(T) == 2) {
    async = aligned;
    if (async) float_tiles<T, true><<<grid, Tile::kThreads, 0, stream>>>(p);
  }
  if (!async) float_tiles<T, false><<<grid, Tile::kThreads, 0, stream>>>(p);
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
