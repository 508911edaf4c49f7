// The other entry points: device, integer product, dequantisation, input gradient, cuBLASLt's 16-bit product.
#include <cstring>

#include "api/validation.cuh"
#include "epilogue/dequantize.cuh"
#include "gemm/gemm.cuh"

using namespace int8_cuda;

extern "C" {

int32_t int8_cuda_abi(void) { return INT8_CUDA_ABI; }

const char *int8_cuda_status_text(int8_cuda_status status) {
  switch (status) {
    case INT8_CUDA_OK: return "done";
    case INT8_CUDA_INVALID: return "invalid argument";
    case INT8_CUDA_UNSUPPORTED: return "not supported on this device or by this algorithm";
    case INT8_CUDA_WORKSPACE: return "workspace missing, misaligned or too small";
    case INT8_CUDA_DEVICE: return "the device failed";
  }
  return "unknown status";
}

const char *int8_cuda_last_device_error(void) { return last_device_error(); }

int8_cuda_status int8_cuda_get_device_info(int8_cuda_device_info *info) {
  if (info == nullptr) return INT8_CUDA_INVALID;
  *info = int8_cuda_device_info{};
  int index = 0;
  cudaDeviceProp properties;
  INT8_CUDA_TRY(cudaGetDevice(&index));
  INT8_CUDA_TRY(cudaGetDeviceProperties(&properties, index));
  INT8_CUDA_TRY(cudaDriverGetVersion(&info->driver_version));
  INT8_CUDA_TRY(cudaRuntimeGetVersion(&info->runtime_version));
  info->compute_major = properties.major;
  info->compute_minor = properties.minor;
  info->multiprocessors = properties.multiProcessorCount;
  info->has_wgmma = properties.major == 9 ? 1 : 0;
  info->has_cublaslt = cublaslt_found() ? 1 : 0;
  info->l2_bytes = static_cast<uint64_t>(properties.l2CacheSize);
  info->memory_bytes = properties.totalGlobalMem;
  std::memcpy(info->name, properties.name, sizeof info->name - 1);
  static_assert(sizeof info->name <= sizeof properties.name, "the name is copied whole");
  return INT8_CUDA_OK;
}

int8_cuda_status int8_cuda_product(const int8_cuda_product_params *p) {
  if (p == nullptr || !valid_sizes(p->m, p->n, p->k)) return INT8_CUDA_INVALID;
  if (p->m == 0 || p->n == 0) return INT8_CUDA_OK;
  const int64_t inner = round_up<int64_t>(p->k, 16);
  if (p->out == nullptr || (p->k > 0 && (p->a == nullptr || p->w == nullptr)) || p->lda < inner || p->ldw < inner ||
      p->lda % 16 != 0 || p->ldw % 16 != 0 || p->ldo < p->n || !aligned(p->a, 16) || !aligned(p->w, 16)) {
    return INT8_CUDA_INVALID;
  }
  Device device;
  INT8_CUDA_PASS(current_device(&device));
  if (device.major < 8) return INT8_CUDA_UNSUPPORTED;
  if (p->algorithm == INT8_CUDA_CUBLASLT) return cublaslt_product(*p);
  if (p->algorithm != INT8_CUDA_AUTO && p->algorithm != INT8_CUDA_MMA) return INT8_CUDA_INVALID;
  GemmParams g{};
  g.a = p->a;
  g.w = p->w;
  g.y = p->out;
  g.lda = p->lda;
  g.ldw = p->ldw;
  g.ldy = p->ldo;
  g.m = static_cast<int32_t>(p->m);
  g.n = static_cast<int32_t>(p->n);
  g.k = static_cast<int32_t>(p->k);
  return launch_mma_i32(g, static_cast<cudaStream_t>(p->stream));
}

int8_cuda_status int8_cuda_dequantize(const int8_cuda_dequantize_params *p) {
  if (p == nullptr || p->rows < 0 || p->inner < 0 || p->inner > kMaxSize || p->rows > kMaxSize) return INT8_CUDA_INVALID;
  if (p->rows == 0 || p->inner == 0) return INT8_CUDA_OK;
  if (p->codes == nullptr || p->scales == nullptr || p->values == nullptr || p->ldq < p->inner || p->ldv < p->inner) return INT8_CUDA_INVALID;
  return launch_dequantize(*p);
}

int8_cuda_status int8_cuda_gradient(const int8_cuda_gradient_params *p) {
  if (p == nullptr || p->m < 0 || p->n < 0 || p->k < 0 || p->m > kMaxSize || p->n > kMaxSize || p->k > kMaxSize) return INT8_CUDA_INVALID;
  if (p->m == 0 || p->k == 0) return INT8_CUDA_OK;
  const bool operands = p->n == 0 || (p->dy != nullptr && p->weight != nullptr && p->weight_scales != nullptr);
  if (!operands || p->dx == nullptr || p->lddy < p->n || p->ldw < p->k || p->lddx < p->k) return INT8_CUDA_INVALID;
  return launch_input_gradient(*p);
}

int8_cuda_status int8_cuda_dense_candidates(const int8_cuda_dense_params *p, int32_t *count) {
  if (p == nullptr || count == nullptr) return INT8_CUDA_INVALID;
  *count = 0;
  return cublaslt_found() ? cublaslt_dense(*p, count) : INT8_CUDA_OK;
}

int8_cuda_status int8_cuda_dense(const int8_cuda_dense_params *p) {
  if (p == nullptr || p->m <= 0 || p->n <= 0 || p->k <= 0 || p->x == nullptr || p->w == nullptr || p->y == nullptr) return INT8_CUDA_INVALID;
  if (p->element != INT8_CUDA_F16 && p->element != INT8_CUDA_BF16) return INT8_CUDA_UNSUPPORTED;
  return cublaslt_dense(*p, nullptr);
}

}  // extern "C"
