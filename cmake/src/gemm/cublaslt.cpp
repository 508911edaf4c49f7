// cuBLASLt by dlopen: a program starts without this library of 500 MB, which the int8 layer does not need.
#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

#include "gemm/float_linear.cuh"
#include "gemm/gemm.cuh"

namespace int8_cuda {
namespace {

struct Library {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmul) matmul;
  bool found;

  Library() : found(false) {
    void *library = dlopen("libcublasLt.so.13", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return;
    found = true;
    const auto look_up = [&](auto &function, const char *name) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
      found = found && function != nullptr;
    };
    look_up(create, "cublasLtCreate");
    look_up(desc_create, "cublasLtMatmulDescCreate");
    look_up(desc_destroy, "cublasLtMatmulDescDestroy");
    look_up(desc_set, "cublasLtMatmulDescSetAttribute");
    look_up(layout_create, "cublasLtMatrixLayoutCreate");
    look_up(layout_destroy, "cublasLtMatrixLayoutDestroy");
    look_up(preference_create, "cublasLtMatmulPreferenceCreate");
    look_up(preference_destroy, "cublasLtMatmulPreferenceDestroy");
    look_up(preference_set, "cublasLtMatmulPreferenceSetAttribute");
    look_up(heuristic, "cublasLtMatmulAlgoGetHeuristic");
    look_up(matmul, "cublasLtMatmul");
  }
};

const Library &library() {
  static const Library instance;
  return instance;
}

// The handle of the current device, on which it was made. Several threads may use one.
cublasStatus_t current_handle(cublasLtHandle_t *handle) {
  static std::mutex mutex;
  static std::map<int, cublasLtHandle_t> handles;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return CUBLAS_STATUS_NOT_INITIALIZED;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto known = handles.find(device);
  if (known != handles.end()) {
    *handle = known->second;
    return CUBLAS_STATUS_SUCCESS;
  }
  const cublasStatus_t status = library().create(handle);
  if (status == CUBLAS_STATUS_SUCCESS) handles.emplace(device, *handle);
  return status;
}

int8_cuda_status status_of(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS: return INT8_CUDA_OK;
    case CUBLAS_STATUS_NOT_SUPPORTED: return INT8_CUDA_UNSUPPORTED;
    case CUBLAS_STATUS_INVALID_VALUE: return INT8_CUDA_INVALID;
    default: return device_status(cudaErrorUnknown);
  }
}

constexpr int kCandidates = 8;

// Row-major out [m, n] = x [m, k] * w [n, k]^T; column-major, as cuBLASLt computes, out^T = w * x^T.
struct Product {
  cudaDataType_t in, out;
  cublasComputeType_t compute;
  cudaDataType_t scale;
  int64_t m, n, k, ldx, ldw, ldo;
  const void *x, *w;
  void *y, *workspace;
  size_t workspace_bytes;
  cudaStream_t stream;
  const void *one, *zero;
};

int8_cuda_status run(const Product &p, int candidate, int *candidates) {
  const Library &lib = library();
  if (!lib.found) return INT8_CUDA_UNSUPPORTED;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
  cublasLtMatmulPreference_t preference = nullptr;
  cublasLtMatmulHeuristicResult_t results[kCandidates];
  int found = 0;
  const cublasOperation_t transposed = CUBLAS_OP_T;
  cublasLtHandle_t handle = nullptr;
  cublasStatus_t status = current_handle(&handle);
  const auto then = [&](auto call) {
    if (status == CUBLAS_STATUS_SUCCESS) status = call();
  };
  then([&] { return lib.desc_create(&desc, p.compute, p.scale); });
  then([&] { return lib.desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed); });
  then([&] { return lib.layout_create(&w, p.in, p.k, p.n, p.ldw); });
  then([&] { return lib.layout_create(&x, p.in, p.k, p.m, p.ldx); });
  then([&] { return lib.layout_create(&y, p.out, p.n, p.m, p.ldo); });
  then([&] { return lib.preference_create(&preference); });
  then([&] {
    return lib.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &p.workspace_bytes,
                              sizeof p.workspace_bytes);
  });
  then([&] { return lib.heuristic(handle, desc, w, x, y, y, preference, kCandidates, results, &found); });
  if (candidates != nullptr) {
    *candidates = found;
  } else {
    then([&] {
      if (candidate < 0 || candidate >= found) return CUBLAS_STATUS_NOT_SUPPORTED;
      return lib.matmul(handle, desc, p.one, p.w, w, p.x, x, p.zero, p.y, y, p.y, y, &results[candidate].algo,
                        p.workspace, p.workspace_bytes, p.stream);
    });
  }
  if (preference != nullptr) lib.preference_destroy(preference);
  if (y != nullptr) lib.layout_destroy(y);
  if (x != nullptr) lib.layout_destroy(x);
  if (w != nullptr) lib.layout_destroy(w);
  if (desc != nullptr) lib.desc_destroy(desc);
  return status_of(status);
}

// ---- Planned products: descriptors and algorithm are kept, so that a call is one launch on the host. ----

// All that an algorithm is chosen by. Alignments are powers of two up to 256 bytes.
struct PlanKey {
  int device, element, y_element;
  bool bias;
  int64_t m, n, k, ldx, ldy;
  size_t workspace_bytes;
  uint32_t x_alignment, w_alignment, y_alignment;
  auto tie() const {
    return std::tie(device, element, y_element, bias, m, n, k, ldx, ldy, workspace_bytes, x_alignment, w_alignment, y_alignment);
  }
  bool operator<(const PlanKey &other) const { return tie() < other.tie(); }
};

struct Plan {
  cublasLtHandle_t handle = nullptr;  // of the device in the key
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;  // a failure is remembered, too
};

void destroy(const Plan &plan) {
  const Library &lib = library();
  if (plan.y != nullptr) lib.layout_destroy(plan.y);
  if (plan.x != nullptr) lib.layout_destroy(plan.x);
  if (plan.w != nullptr) lib.layout_destroy(plan.w);
  if (plan.desc != nullptr) lib.desc_destroy(plan.desc);
}

cudaDataType_t type_of(int element) { return element == INT8_CUDA_F16 ? CUDA_R_16F : element == INT8_CUDA_BF16 ? CUDA_R_16BF : CUDA_R_32F; }

uint32_t alignment_of(const void *pointer) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer) | 256;
  return static_cast<uint32_t>(address & (~address + 1));
}

Plan make_plan(const PlanKey &key) {
  const Library &lib = library();
  Plan plan;
  cublasLtMatmulPreference_t preference = nullptr;
  cublasLtMatmulHeuristicResult_t result;
  int found = 0;
  const cublasOperation_t transposed = CUBLAS_OP_T;
  const cublasLtEpilogue_t bias = CUBLASLT_EPILOGUE_BIAS;
  const cudaDataType_t type = type_of(key.element), y_type = type_of(key.y_element);
  const auto then = [&](auto call) {
    if (plan.status == CUBLAS_STATUS_SUCCESS) plan.status = call();
  };
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto &value) {
    then([&] { return lib.preference_set(preference, attribute, &value, sizeof value); });
  };
  then([&] { return current_handle(&plan.handle); });
  then([&] { return lib.desc_create(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F); });
  then([&] { return lib.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed); });
  if (key.bias) {
    then([&] { return lib.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &bias, sizeof bias); });
    then([&] { return lib.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &y_type, sizeof y_type); });
  }
  then([&] { return lib.layout_create(&plan.w, type, key.k, key.n, key.k); });
  then([&] { return lib.layout_create(&plan.x, type, key.k, key.m, key.ldx); });
  then([&] { return lib.layout_create(&plan.y, y_type, key.n, key.m, key.ldy); });
  then([&] { return lib.preference_create(&preference); });
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, key.workspace_bytes);
  // Parts of a split k are added in f32, not in y's type.
  const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.w_alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.x_alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.y_alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.y_alignment);
  then([&] { return lib.heuristic(plan.handle, plan.desc, plan.w, plan.x, plan.y, plan.y, preference, 1, &result, &found); });
  then([&] { return found > 0 ? result.state : CUBLAS_STATUS_NOT_SUPPORTED; });
  if (plan.status == CUBLAS_STATUS_SUCCESS) plan.algorithm = result.algo;
  if (preference != nullptr) lib.preference_destroy(preference);
  return plan;
}

// Plans kept; prompts of many lengths would fill memory. Beyond, all are made anew.
constexpr size_t kPlans = 2048;

}  // namespace

int8_cuda_status cublaslt_linear(const int8_cuda_float_linear_params &p) {
  const Library &lib = library();
  // Some of its kernels round the product to a 16-bit y's type before they add y.
  if (!lib.found || (p.store == INT8_CUDA_ACCUMULATE && p.y_element != INT8_CUDA_F32)) return INT8_CUDA_UNSUPPORTED;
  const cudaStream_t stream = static_cast<cudaStream_t>(p.stream);
  void *workspace = p.workspace;
  size_t workspace_bytes = workspace != nullptr ? p.workspace_bytes : 0;
  const void *bias = p.bias;
  if (bias != nullptr && p.y_element != INT8_CUDA_F32) {
    // The bias of a 16-bit y is of y's type; one of a checkpoint of that type is not changed by the rounding.
    const size_t bytes = round_up<size_t>(static_cast<size_t>(p.n) * 2, 256);
    if (workspace_bytes < bytes || reinterpret_cast<uintptr_t>(workspace) % 256 != 0) return INT8_CUDA_UNSUPPORTED;
    INT8_CUDA_PASS(launch_round(p.bias, workspace, p.n, p.y_element, stream, false));
    bias = workspace;
    workspace = static_cast<uint8_t *>(workspace) + bytes;
    workspace_bytes -= bytes;
  }
  PlanKey key{0, p.element, p.y_element, bias != nullptr, p.m, p.n, p.k, p.ldx, p.ldy, workspace_bytes,
              alignment_of(p.x), alignment_of(p.w), alignment_of(p.y)};
  INT8_CUDA_TRY(cudaGetDevice(&key.device));

  static std::mutex mutex;
  static std::map<PlanKey, Plan> plans;
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = plans.find(key);
  if (found == plans.end()) {
    if (plans.size() >= kPlans) {
      for (const auto &entry : plans) destroy(entry.second);
      plans.clear();
    }
    found = plans.emplace(key, make_plan(key)).first;
  }
  const Plan &plan = found->second;
  if (plan.status != CUBLAS_STATUS_SUCCESS) return INT8_CUDA_UNSUPPORTED;
  if (bias != nullptr) {
    const cublasStatus_t status = lib.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias);
    if (status != CUBLAS_STATUS_SUCCESS) return status_of(status);
  }
  const float one = 1.0f, beta = p.store == INT8_CUDA_ACCUMULATE ? 1.0f : 0.0f;
  return status_of(lib.matmul(plan.handle, plan.desc, &one, p.w, plan.w, p.x, plan.x, &beta, p.y, plan.y, p.y, plan.y,
                              &plan.algorithm, workspace, workspace_bytes, stream));
}

bool cublaslt_found() {
  cublasLtHandle_t handle = nullptr;
  return library().found && current_handle(&handle) == CUBLAS_STATUS_SUCCESS;
}

int8_cuda_status cublaslt_product(const int8_cuda_product_params &p) {
  const int32_t one = 1, zero = 0;
  // cuBLASLt's int8 kernels need K a multiple of 4; the padding is zero.
  const Product product{CUDA_R_8I, CUDA_R_32I, CUBLAS_COMPUTE_32I, CUDA_R_32I, p.m, p.n, round_up<int64_t>(p.k, 16), p.lda,
                        p.ldw, p.ldo, p.a, p.w, p.out, p.workspace, p.workspace_bytes,
                        static_cast<cudaStream_t>(p.stream), &one, &zero};
  return run(product, 0, nullptr);
}

int8_cuda_status cublaslt_dense(const int8_cuda_dense_params &p, int *candidates) {
  const float one = 1.0f, zero = 0.0f;
  const cudaDataType_t type = p.element == INT8_CUDA_F16 ? CUDA_R_16F : CUDA_R_16BF;
  const Product product{type, type, CUBLAS_COMPUTE_32F, CUDA_R_32F, p.m, p.n, p.k, p.k, p.k, p.n, p.x, p.w, p.y,
                        p.workspace, p.workspace_bytes, static_cast<cudaStream_t>(p.stream), &one, &zero};
  return run(product, p.candidate, candidates);
}

}  // namespace int8_cuda
