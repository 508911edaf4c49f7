// Tensor maps of matrices for TMA (sm_90).
#pragma once

#include <cuda.h>

#include "common/status.cuh"

namespace int8_cuda {

using EncodeTiled = CUresult (*)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                                 const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// The driver's encoder, looked up once: a program linked to libcuda would not start where there is no driver.
inline int8_cuda_status find_encoder(EncodeTiled *encode) {
  static EncodeTiled found = nullptr;
  EncodeTiled local = __atomic_load_n(&found, __ATOMIC_ACQUIRE);
  if (local == nullptr) {
    void *symbol = nullptr;
    cudaDriverEntryPointQueryResult result;
    INT8_CUDA_TRY(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &symbol, 12000, cudaEnableDefault, &result));
    if (symbol == nullptr) return INT8_CUDA_UNSUPPORTED;
    local = reinterpret_cast<EncodeTiled>(symbol);
    __atomic_store_n(&found, local, __ATOMIC_RELEASE);
  }
  *encode = local;
  return INT8_CUDA_OK;
}

}  // namespace int8_cuda
