// Codes as values: one thread an element.
#include "epilogue/dequantize.cuh"

namespace int8_cuda {
namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kThreads) dequantize_rows(int8_cuda_dequantize_params p) {
  for (int64_t row = blockIdx.y; row < p.rows; row += gridDim.y) {
    const int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (k >= p.inner) return;
    const float v = dequantized(p.codes, p.scales, p.zero_points, p.ldq, static_cast<int>(row), static_cast<int>(k));
    static_cast<T *>(p.values)[row * p.ldv + k] = from_f32<T>(v);
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

}  // namespace

int8_cuda_status launch_dequantize(const int8_cuda_dequantize_params &p) {
  switch (p.element) {
    case INT8_CUDA_F16: return launch_dequantize_typed<__half>(p);
    case INT8_CUDA_BF16: return launch_dequantize_typed<__nv_bfloat16>(p);
    case INT8_CUDA_F32: return launch_dequantize_typed<float>(p);
    default: return INT8_CUDA_INVALID;
  }
}

}  // namespace int8_cuda
