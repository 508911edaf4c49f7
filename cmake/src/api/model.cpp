// Entry points of a model's operations around its int8 layers: functions of rows, gathers, floating-point products, sampling.
#include "api/validation.cuh"
#include "epilogue/sample.cuh"
#include "gemm/float_linear.cuh"
#include "int8_cuda_model.h"
#include "prologue/transform.cuh"

using namespace int8_cuda;

namespace {

bool valid_element(int element) { return element >= INT8_CUDA_F16 && element <= INT8_CUDA_F32; }
bool aligned_to_element(const void *pointer, int element) { return aligned(pointer, static_cast<uintptr_t>(element_bytes(element))); }

// An empty row of logits has no token.
bool valid_sample_sizes(const int8_cuda_sample_params &p) {
  return p.rows >= 0 && p.rows <= kMaxSize && p.vocabulary > 0 && p.vocabulary <= kMaxSize;
}

}  // namespace

extern "C" {

int8_cuda_status int8_cuda_apply_transform(const int8_cuda_transform_params *p) {
  if (p == nullptr || p->rows < 0 || p->k < 0 || p->groups < 0 || p->rows > kMaxSize || p->k > kMaxSize || p->groups > kMaxSize) {
    return INT8_CUDA_INVALID;
  }
  const int8_cuda_transform &f = p->transform;
  const bool norm = f.function == INT8_CUDA_RMS_NORM || f.function == INT8_CUDA_LAYER_NORM, gated = f.function == INT8_CUDA_GATED;
  const bool activation = gated || f.function == INT8_CUDA_ACTIVATION;
  if (f.function < INT8_CUDA_IDENTITY || f.function > INT8_CUDA_SCALE || !valid_element(p->x_element) || !valid_element(p->y_element) ||
      !valid_store(p->store) || (activation && (f.activation < INT8_CUDA_RELU || f.activation > INT8_CUDA_SILU)) ||
      (gated && p->groups != 1)) {
    return INT8_CUDA_INVALID;
  }
  if (p->rows == 0 || p->k == 0 || p->groups == 0) return INT8_CUDA_OK;
  const int64_t width = p->groups * p->k;
  if (width > kMaxSize || p->ldx < (gated ? 2 * width : width) || p->ldy < width || p->x == nullptr || p->y == nullptr ||
      !aligned_to_element(p->x, p->x_element) || !aligned_to_element(p->y, p->y_element) || (norm && f.gain == nullptr)) {
    return INT8_CUDA_INVALID;
  }
  Device device;
  INT8_CUDA_PASS(current_device(&device));
  return launch_transform(*p, device.major >= 9);
}

int8_cuda_status int8_cuda_gather(const int8_cuda_gather_params *p) {
  if (p == nullptr || p->rows < 0 || p->width < 0 || p->rows > kMaxSize || p->width > kMaxSize || !valid_store(p->store)) {
    return INT8_CUDA_INVALID;
  }
  const auto valid_table = [](const void *table, const int32_t *index, int element) {
    return table == nullptr || (index != nullptr && valid_element(element) && aligned_to_element(table, element));
  };
  if (!valid_table(p->table, p->index, p->element) || !valid_table(p->second, p->second_index, p->second_element)) return INT8_CUDA_INVALID;
  if (p->rows == 0 || p->width == 0) return INT8_CUDA_OK;
  if ((p->table == nullptr && p->second == nullptr) || p->out == nullptr) return INT8_CUDA_INVALID;
  Device device;
  INT8_CUDA_PASS(current_device(&device));
  return launch_gather(*p, device.major >= 9);
}

int8_cuda_status int8_cuda_float_linear(const int8_cuda_float_linear_params *p) {
  if (p == nullptr || p->m < 0 || p->n < 0 || p->k < 0 || p->m > kMaxSize || p->n > kMaxSize || p->k > kMaxSize ||
      !valid_element(p->element) || (p->y_element != p->element && p->y_element != INT8_CUDA_F32) || !valid_store(p->store)) {
    return INT8_CUDA_INVALID;
  }
  if (p->m == 0 || p->n == 0) return INT8_CUDA_OK;
  if ((p->k > 0 && (p->x == nullptr || p->w == nullptr)) || p->y == nullptr || p->ldx < p->k || p->ldy < p->n ||
      !aligned_to_element(p->x, p->element) || !aligned_to_element(p->w, p->element) || !aligned_to_element(p->y, p->y_element)) {
    return INT8_CUDA_INVALID;
  }
  Device device;
  INT8_CUDA_PASS(current_device(&device));
  if (device.major < 8) return INT8_CUDA_UNSUPPORTED;
  if (float_gemv_tma_supports(*p, device)) return launch_float_gemv_tma(*p, device);
  if (p->m <= kFloatGemvM) return launch_float_gemv(*p, device.multiprocessors, device.major >= 9);
  if (p->k > 0) {
    const int8_cuda_status status = cublaslt_linear(*p);
    if (status != INT8_CUDA_UNSUPPORTED) return status;
  }
  return launch_float_tiles(*p);
}

int8_cuda_status int8_cuda_sample_workspace(const int8_cuda_sample_params *p, size_t *bytes) {
  if (p == nullptr || bytes == nullptr || !valid_sample_sizes(*p)) return INT8_CUDA_INVALID;
  *bytes = sample_bytes(p->rows, p->vocabulary);
  return INT8_CUDA_OK;
}

int8_cuda_status int8_cuda_sample(const int8_cuda_sample_params *p) {
  if (p == nullptr || !valid_sample_sizes(*p)) return INT8_CUDA_INVALID;
  if (p->rows == 0) return INT8_CUDA_OK;
  if (p->logits == nullptr || p->samplers == nullptr || p->tokens == nullptr || p->ld < p->vocabulary ||
      !aligned(p->logits, sizeof(float)) || !aligned(p->samplers, alignof(int8_cuda_sampler))) {
    return INT8_CUDA_INVALID;
  }
  if (!valid_workspace(p->workspace, p->workspace_bytes, sample_bytes(p->rows, p->vocabulary))) return INT8_CUDA_WORKSPACE;
  Device device;
  INT8_CUDA_PASS(current_device(&device));
  if (device.major < 8) return INT8_CUDA_UNSUPPORTED;
  return launch_sample(*p, device.multiprocessors, device.major >= 9);
}

}  // extern "C"
