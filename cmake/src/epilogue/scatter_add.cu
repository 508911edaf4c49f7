// Rows of experts back to their tokens: out[index[r]] += weights[r] * x[r].
#include "common/launch.cuh"
#include "int8_cuda_model.h"

namespace int8_cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) scatter_add(const __grid_constant__ int8_cuda_scatter_add_params p) {
  pdl_trigger();
  pdl_wait();
  const int64_t r = blockIdx.y;
  const float weight = p.weights[r];
  const float *x = p.x + r * p.width;
  float *out = p.out + p.index[r] * p.width;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.width; i += static_cast<int64_t>(gridDim.x) * kThreads) {
    out[i] = fmaf(weight, x[i], out[i]);
  }
}

}  // namespace
}  // namespace int8_cuda

using namespace int8_cuda;

extern "C" int8_cuda_status int8_cuda_scatter_add(const int8_cuda_scatter_add_params *p) {
  if (p == nullptr || p->rows < 0 || p->width < 0) return INT8_CUDA_INVALID;
  if (p->rows == 0 || p->width == 0) return INT8_CUDA_OK;
  if (p->x == nullptr || p->index == nullptr || p->weights == nullptr || p->out == nullptr) return INT8_CUDA_INVALID;
  if (p->rows > 65535) return INT8_CUDA_UNSUPPORTED;
  Device device;
  INT8_CUDA_PASS(current_device(&device));
  const int64_t blocks = ceil_div<int64_t>(p->width, kThreads);
  Launch launch(dim3(static_cast<unsigned>(blocks < 64 ? blocks : 64), static_cast<unsigned>(p->rows)), dim3(kThreads), 0,
                static_cast<cudaStream_t>(p->stream), device.major >= 9);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, scatter_add, *p));
  return INT8_CUDA_OK;
}
