// Operations on weights as numbers, and the products that cuBLASLt computes.
#pragma once

#include "common.cuh"

namespace int8_cuda {

int8_cuda_status launch_dequantize(const int8_cuda_dequantize_params &params);
int8_cuda_status launch_gradient(const int8_cuda_gradient_params &params);

// cuBLASLt is looked up when first asked for; without it these return INT8_CUDA_UNSUPPORTED.
bool cublaslt_found();
int8_cuda_status cublaslt_product(const int8_cuda_product_params &params);
int8_cuda_status cublaslt_dense(const int8_cuda_dense_params &params, int *candidates);

}  // namespace int8_cuda
