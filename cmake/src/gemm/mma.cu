// MMA: any size and type, any number of outlier columns, which it gathers; the fallback of the forms. And the raw product.
#include "gemm/mma.cuh"

namespace int8_cuda {
namespace {

// More threads than the form of these tiles: they gather.
template <typename T>
int8_cuda_status launch(const GemmParams &p, cudaStream_t stream, bool overlap) {
  return tile::launch_tile<T, tile::Form<128, 128, 2, 4, 3, 1>, true>(p, stream, overlap);
}

}  // namespace

int8_cuda_status launch_mma(const GemmParams &p, int element, cudaStream_t stream, bool overlap) {
  switch (element) {
    case INT8_CUDA_F16: return launch<__half>(p, stream, overlap);
    case INT8_CUDA_BF16: return launch<__nv_bfloat16>(p, stream, overlap);
    case INT8_CUDA_F32: return launch<float>(p, stream, overlap);
    default: return INT8_CUDA_INVALID;
  }
}

int8_cuda_status launch_mma_i32(const GemmParams &p, cudaStream_t stream) {
  return tile::launch_tile<tile::Raw, tile::Form<128, 128, 2, 2, 3, 2>, true>(p, stream, false);
}

}  // namespace int8_cuda
