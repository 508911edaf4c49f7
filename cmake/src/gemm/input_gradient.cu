// The input gradient dX = dY * dequantise(W): tiles of 128x128, operands gathered element by element.
#include "epilogue/dequantize.cuh"
#include "gemm/gemm.cuh"
#include "gemm/mma_tile.cuh"

namespace int8_cuda {
namespace {

using Tile = tile::Form<128, 128, 2, 4, 2, 1>;

template <typename T>
__global__ void __launch_bounds__(Tile::kThreads, 1) input_gradient(int8_cuda_gradient_params p) {
#if __CUDA_ARCH__ >= 800
  __shared__ alignas(128) uint8_t memory[Tile::kBytes];
  const int m0 = static_cast<int>(blockIdx.y) * Tile::kBm, k0 = static_cast<int>(blockIdx.x) * Tile::kBn;
  const int rows = static_cast<int>(p.m), inner = static_cast<int>(p.k);
  tile::Part<Tile, T> part(memory);
  auto f = part.accumulators();
  cute::clear(f);
  tile::accumulate_gathered<true>(
      part, f, static_cast<int>(p.n),
      [&](int row, int n) {
        return m0 + row < rows ? static_cast<const T *>(p.dy)[(m0 + row) * p.lddy + n] : from_f32<T>(0.0f);
      },
      [&](int row, int n) {
        if (k0 + row >= inner) return from_f32<T>(0.0f);
        return from_f32<T>(dequantized(p.weight, p.weight_scales, p.weight_zero_points, p.ldw, n, k0 + row));
      });
  const auto place = part.places();
#pragma unroll
  for (int i = 0; i < cute::size(f); ++i) {
    const int m = m0 + static_cast<int>(cute::get<0>(place(i))), k = k0 + static_cast<int>(cute::get<1>(place(i)));
    if (m < rows && k < inner) static_cast<T *>(p.dx)[m * p.lddx + k] = from_f32<T>(f(i));
  }
#endif
}

template <typename T>
int8_cuda_status launch_gradient_typed(const int8_cuda_gradient_params &p) {
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(p.k, Tile::kBn)), static_cast<unsigned>(ceil_div<int64_t>(p.m, Tile::kBm)));
  if (grid.y > 65535) return INT8_CUDA_UNSUPPORTED;
  input_gradient<T><<<grid, Tile::kThreads, 0, static_cast<cudaStream_t>(p.stream)>>>(p);
  INT8_CUDA_TRY(cudaGetLastError());
  return INT8_CUDA_OK;
}

}  // namespace

int8_cuda_status launch_input_gradient(const int8_cuda_gradient_params &p) {
  switch (p.element) {
    case INT8_CUDA_F16: return launch_gradient_typed<__half>(p);
    case INT8_CUDA_BF16: return launch_gradient_typed<__nv_bfloat16>(p);
    case INT8_CUDA_F32: return launch_gradient_typed<float>(p);
    default: return INT8_CUDA_INVALID;
  }
}

}  // namespace int8_cuda
