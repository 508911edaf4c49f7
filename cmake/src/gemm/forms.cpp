// The forms by algorithm.
#include "gemm/forms.cuh"

namespace int8_cuda {

Kind kind_of(int algorithm) {
#define INT8_CUDA_KIND_ROW(name, number, rust, kind, ...) \
  if (algorithm == INT8_CUDA_##name) return Kind::kind;
  INT8_CUDA_ALGORITHMS(INT8_CUDA_KIND_ROW)
#undef INT8_CUDA_KIND_ROW
  return Kind::NONE;
}

int8_cuda_status launch_form(const GemmParams &params, int element, int algorithm, cudaStream_t stream, bool overlap) {
#define INT8_CUDA_FORM_ROW_WGMMA(name, ...) \
  if (algorithm == INT8_CUDA_##name) return launch_form<INT8_CUDA_##name>(params, element, stream, overlap);
#define INT8_CUDA_FORM_ROW_MMA(...) INT8_CUDA_FORM_ROW_WGMMA(__VA_ARGS__)
  INT8_CUDA_FORMS
#undef INT8_CUDA_FORM_ROW_MMA
#undef INT8_CUDA_FORM_ROW_WGMMA
  return INT8_CUDA_INVALID;
}

}  // namespace int8_cuda
