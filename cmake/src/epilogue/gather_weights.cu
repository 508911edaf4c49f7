// W's outlier columns in panels of 64: a thread writes 16 bytes, eight columns of one row.
#include "epilogue/gather_weights.cuh"

#include "common/launch.cuh"

namespace int8_cuda {
namespace {

constexpr int kThreads = 256, kPiece = 8;
// Rows a block: one piece a thread and panel.
constexpr int kRows = kThreads / (64 / kPiece);

template <typename T>
__global__ void __launch_bounds__(kThreads) gather_weights(const __grid_constant__ GatherParams p) {
  pdl_trigger();
  pdl_wait();
  const uint32_t count = *p.count;
  if (count > p.ld) return;
  const uint32_t pieces = round_up(count, 64u) / kPiece;
  for (uint32_t i = threadIdx.x; i < kRows * pieces; i += kThreads) {
    const int64_t n = static_cast<int64_t>(blockIdx.x) * kRows + i / pieces;
    if (n >= p.n) break;
    const uint32_t first = i % pieces * kPiece;
    const int zero = p.weight.zero_points != nullptr ? p.weight.zero_points[n] : 0;
    alignas(16) T out[kPiece];
#pragma unroll
    for (uint32_t e = 0; e < kPiece; ++e) {
      out[e] = from_f32<T>(0.0f);
      if (first + e >= count) continue;
      const int k = p.columns[first + e];
      out[e] = p.weights_are_codes ? from_f32<T>(static_cast<float>(p.weight.codes[n * p.weight.ldw + k] - zero))
                                   : from_f32<T>(outlier_weight<T>(p.weight, n, k));
    }
    *reinterpret_cast<uint4 *>(static_cast<T *>(p.to) + outlier_index(p.n, n, first)) = *reinterpret_cast<const uint4 *>(out);
  }
}

template <typename T>
int8_cuda_status launch_typed(const GatherParams &p, cudaStream_t stream, bool overlap) {
  Launch launch(dim3(static_cast<unsigned>(ceil_div<int64_t>(p.n, kRows))), dim3(kThreads), 0, stream, overlap);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, gather_weights<T>, p));
  return INT8_CUDA_OK;
}

}  // namespace

int8_cuda_status launch_gather_weights(const GatherParams &p, int element, cudaStream_t stream, bool overlap) {
  switch (element) {
    case INT8_CUDA_F16: return launch_typed<__half>(p, stream, overlap);
    case INT8_CUDA_BF16: return launch_typed<__nv_bfloat16>(p, stream, overlap);
    default: return INT8_CUDA_UNSUPPORTED;
  }
}

}  // namespace int8_cuda
