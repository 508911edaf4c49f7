// Weights back to numbers: dequantisation, and the input gradient dX = dY * dequantise(W).
#include "dense.cuh"
#include "gathered.cuh"

namespace int8_cuda {
namespace {

using namespace tile;

template <typename T>
__device__ __forceinline__ float value_of(const T *codes, const float *scales, const int32_t *zeros, int64_t ld, int row, int k) {
  const int zero = zeros != nullptr ? zeros[row] : 0;
  return static_cast<float>(codes[row * ld + k] - zero) * (scales[row] * (1.0f / 127.0f));
}

template <typename T>
__global__ void __launch_bounds__(kThreads) dequantize_rows(int8_cuda_dequantize_params p) {
  for (int64_t row = blockIdx.y; row < p.rows; row += gridDim.y) {
    const int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (k >= p.inner) return;
    const float v = value_of(p.codes, p.scales, p.zero_points, p.ldq, static_cast<int>(row), static_cast<int>(k));
    static_cast<T *>(p.values)[row * p.ldv + k] = from_f32<T>(v);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) input_gradient(int8_cuda_gradient_params p) {
  __shared__ alignas(128) uint8_t memory[(kBm + kBn) * (kStepF32 + 1) * 4];
  const int m0 = static_cast<int>(blockIdx.y) * kBm, k0 = static_cast<int>(blockIdx.x) * kBn;
  const int rows = static_cast<int>(p.m), inner = static_cast<int>(p.k);
  float f[4][4][4] = {};
  accumulate_gathered<T, true>(
      f, memory, static_cast<int>(p.n),
      [&](int row, int n) {
        return m0 + row < rows ? static_cast<const T *>(p.dy)[(m0 + row) * p.lddy + n] : from_f32<T>(0.0f);
      },
      [&](int row, int n) {
        if (k0 + row >= inner) return from_f32<T>(0.0f);
        return from_f32<T>(value_of(p.weight, p.weight_scales, p.weight_zero_points, p.ldw, n, k0 + row));
      });
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int m = m0 + local_row(i, e), k = k0 + local_column(j, e);
        if (m < rows && k < inner) static_cast<T *>(p.dx)[m * p.lddx + k] = from_f32<T>(f[i][j][e]);
      }
    }
  }
}

template <typename T>
int8_cuda_status launch_dequantize_typed(const int8_cuda_dequantize_params &p) {
  const int64_t rows = p.rows < 65535 ? p.rows : 65535;  // the limit of grid.y; the kernel strides over the rest
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(p.inner, kThreads)), static_cast<unsigned>(rows));
  dequantize_rows<T><<<grid, kThreads, 0, static_cast<cudaStream_t>(p.stream)>>>(p);
  INT8_CUDA_TRY(cudaGetLastError());
  return INT8_CUDA_OK;
}

template <typename T>
int8_cuda_status launch_gradient_typed(const int8_cuda_gradient_params &p) {
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(p.k, kBn)), static_cast<unsigned>(ceil_div<int64_t>(p.m, kBm)));
  if (grid.y > 65535) return INT8_CUDA_UNSUPPORTED;
  input_gradient<T><<<grid, kThreads, 0, static_cast<cudaStream_t>(p.stream)>>>(p);
  INT8_CUDA_TRY(cudaGetLastError());
  return INT8_CUDA_OK;
}

}  // namespace

int8_cuda_status launch_dequantize(const int8_cuda_dequantize_params &p) {
  switch (p.element) {
    case INT8_CUDA_F16: return launch_dequantize_typed<__half>(p);
    case INT8_CUDA_BF16: return launch_dequantize_typed<__nv_bfloat16>(p);
    case INT8_CUDA_F32: return launch_dequantize_typed<float>(p);
    default: return INT8_CUDA_INVALID;
  }
}

int8_cuda_status launch_gradient(const int8_cuda_gradient_params &p) {
  switch (p.element) {
    case INT8_CUDA_F16: return launch_gradient_typed<__half>(p);
    case INT8_CUDA_BF16: return launch_gradient_typed<__nv_bfloat16>(p);
    case INT8_CUDA_F32: return launch_gradient_typed<float>(p);
    default: return INT8_CUDA_INVALID;
  }
}

}  // namespace int8_cuda
