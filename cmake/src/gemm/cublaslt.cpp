// cuBLASLt by dlopen: a program starts without this library of 500 MB, which the int8 layer does not need.
#include <cublasLt.h>
#include <dlfcn.h>

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
  cublasLtHandle_t handle;
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
    found = found && create(&handle) == CUBLAS_STATUS_SUCCESS;
  }
};

// One handle for the process: cuBLASLt handles may be used from several threads.
const Library &library() {
  static const Library instance;
  return instance;
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
  cublasStatus_t status = lib.desc_create(&desc, p.compute, p.scale);
  const auto then = [&](auto call) {
    if (status == CUBLAS_STATUS_SUCCESS) status = call();
  };
  then([&] { return lib.desc_set(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed); });
  then([&] { return lib.layout_create(&w, p.in, p.k, p.n, p.ldw); });
  then([&] { return lib.layout_create(&x, p.in, p.k, p.m, p.ldx); });
  then([&] { return lib.layout_create(&y, p.out, p.n, p.m, p.ldo); });
  then([&] { return lib.preference_create(&preference); });
  then([&] {
    return lib.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &p.workspace_bytes,
                              sizeof p.workspace_bytes);
  });
  then([&] { return lib.heuristic(lib.handle, desc, w, x, y, y, preference, kCandidates, results, &found); });
  if (candidates != nullptr) {
    *candidates = found;
  } else {
    then([&] {
      if (candidate < 0 || candidate >= found) return CUBLAS_STATUS_NOT_SUPPORTED;
      return lib.matmul(lib.handle, desc, p.one, p.w, w, p.x, x, p.zero, p.y, y, p.y, y, &results[candidate].algo,
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

}  // namespace

bool cublaslt_found() { return library().found; }

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
