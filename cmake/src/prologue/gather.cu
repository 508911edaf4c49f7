// Rows of embedding tables: a thread has eight columns of one row.
#include "common/launch.cuh"
#include "common/rows.cuh"
#include "prologue/transform.cuh"

namespace int8_cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) gather_rows(const __grid_constant__ int8_cuda_gather_params p, bool vector) {
  pdl_trigger();
  pdl_wait();
  const int64_t row = blockIdx.x, column = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kRun, count = p.width - column;
  if (count <= 0) return;
  float sum[kRun] = {}, v[kRun];
  auto add = [&] {
#pragma unroll
    for (int i = 0; i < kRun; ++i) sum[i] += v[i];
  };
  if (p.table != nullptr) load_run(p.table, (p.index[row] + p.offset) * p.width + column, p.element, count, vector, sum);
  if (p.second != nullptr) {
    load_run(p.second, (p.second_index[row] + p.second_offset) * p.width + column, p.second_element, count, vector, v);
    add();
  }
  float *out = p.out + row * p.width + column;
  if (p.store == INT8_CUDA_ACCUMULATE) {
    load_run(out, count, vector, v);
    add();
  }
  store_run(out, count, vector, sum);
}

}  // namespace

int8_cuda_status launch_gather(const int8_cuda_gather_params &p, bool overlap) {
  const int64_t runs = ceil_div<int64_t>(p.width, kRun);
  const int threads = runs < kThreads ? static_cast<int>(round_up<int64_t>(runs, 32)) : kThreads;
  const int64_t blocks = ceil_div<int64_t>(runs, threads);
  if (blocks > 65535) return INT8_CUDA_UNSUPPORTED;
  const bool vector = p.width % kRun == 0 && rows_aligned(p.table, 0, p.element) && rows_aligned(p.second, 0, p.second_element) &&
                      rows_aligned(p.out, 0, INT8_CUDA_F32);
  Launch launch(dim3(static_cast<unsigned>(p.rows), static_cast<unsigned>(blocks)), dim3(threads), 0,
                static_cast<cudaStream_t>(p.stream), overlap);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, gather_rows, p, vector));
  return INT8_CUDA_OK;
}

}  // namespace int8_cuda
