// One form of the WGMMA kernel, INT8_CUDA_FORM: compiled once for each row of the table.
#include "gemm/forms.cuh"
#include "gemm/wgmma.cuh"

namespace int8_cuda {
namespace wgmma {
namespace {

template <int kAlgorithm>
struct FormOf;
#define INT8_CUDA_FORM_ROW_MMA(...)
#define INT8_CUDA_FORM_ROW_WGMMA(name, ...) \
  template <>                               \
  struct FormOf<INT8_CUDA_##name> {         \
    using Type = Form<__VA_ARGS__>;         \
  };
INT8_CUDA_FORMS
#undef INT8_CUDA_FORM_ROW_WGMMA
#undef INT8_CUDA_FORM_ROW_MMA

}  // namespace
}  // namespace wgmma

template <>
int8_cuda_status launch_form<INT8_CUDA_FORM>(const GemmParams &p, int element, cudaStream_t stream, bool overlap) {
  return wgmma::launch<wgmma::FormOf<INT8_CUDA_FORM>::Type>(p, element, stream, overlap);
}

}  // namespace int8_cuda
