// Some columns of a quantised weight: a warp a row.
#include "common/types.cuh"
#include "exchange/exchange.cuh"

namespace int8_cuda {
namespace {

constexpr int kWarps = 8;

__global__ void __launch_bounds__(kWarps * 32) slice(const __grid_constant__ int8_cuda_slice_params p) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= p.n) return;
  const int lane = threadIdx.x % 32;
  const int8_t *from = p.codes + row * p.ldq + p.first;
  int8_t *to = p.out + row * p.ldo;
  const int8_t zero = p.zero_points == nullptr ? int8_t{0} : static_cast<int8_t>(p.zero_points[row]);
  int32_t sum = 0;
  for (int64_t k = lane; k < p.ldo; k += 32) {
    const int8_t code = k < p.count ? from[k] : k < p.count + p.zeros ? zero : int8_t{0};
    to[k] = code;
    sum += code;
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  if (lane == 0) p.code_sums[row] = sum;
}

}  // namespace

int8_cuda_status launch_slice(const int8_cuda_slice_params &p) {
  slice<<<static_cast<unsigned>(ceil_div<int64_t>(p.n, kWarps)), kWarps * 32, 0, static_cast<cudaStream_t>(p.stream)>>>(p);
  INT8_CUDA_TRY(cudaGetLastError());
  return INT8_CUDA_OK;
}

}  // namespace int8_cuda
