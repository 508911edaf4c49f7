// One form of the tiles by mma.sync, INT8_CUDA_FORM: compiled once for each row of the table.
#include "gemm/forms.cuh"
#include "gemm/mma.cuh"

namespace int8_cuda {
namespace tile {
namespace {

template <int kAlgorithm>
struct FormOf;
#define INT8_CUDA_FORM_ROW_WGMMA(...)
#define INT8_CUDA_FORM_ROW_MMA(name, ...) \
  template <>                             \
  struct FormOf<INT8_CUDA_##name> {       \
    using Type = Form<__VA_ARGS__>;       \
  };
INT8_CUDA_FORMS
#undef INT8_CUDA_FORM_ROW_MMA
#undef INT8_CUDA_FORM_ROW_WGMMA

}  // namespace
}  // namespace tile

template <>
int8_cuda_status launch_form<INT8_CUDA_FORM>(const GemmParams &p, int element, cudaStream_t stream, bool overlap) {
  using Form = tile::FormOf<INT8_CUDA_FORM>::Type;
  switch (element) {
    case INT8_CUDA_F16: return tile::launch_tile<__half, Form, false>(p, stream, overlap);
    case INT8_CUDA_BF16: return tile::launch_tile<__nv_bfloat16, Form, false>(p, stream, overlap);
    default: return INT8_CUDA_UNSUPPORTED;
  }
}

}  // namespace int8_cuda
