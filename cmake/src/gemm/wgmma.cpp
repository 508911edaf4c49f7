// The WGMMA forms by algorithm.
#include "gemm/wgmma_forms.cuh"

namespace int8_cuda {

bool is_wgmma(int algorithm) {
#define INT8_CUDA_FORM_ROW_WGMMA(name, ...) \
  if (algorithm == INT8_CUDA_##name) return true;
  INT8_CUDA_WGMMA_FORMS
#undef INT8_CUDA_FORM_ROW_WGMMA
  return false;
}

int8_cuda_status launch_wgmma(const GemmParams &params, int element, int algorithm, cudaStream_t stream, bool overlap) {
#define INT8_CUDA_FORM_ROW_WGMMA(name, ...) \
  if (algorithm == INT8_CUDA_##name) return launch_wgmma_form<INT8_CUDA_##name>(params, element, stream, overlap);
  INT8_CUDA_WGMMA_FORMS
#undef INT8_CUDA_FORM_ROW_WGMMA
  return INT8_CUDA_INVALID;
}

}  // namespace int8_cuda
