// Activation functions, in f32.
#pragma once

#include "common/types.cuh"
#include "int8_cuda.h"

namespace int8_cuda {

__device__ __forceinline__ float activate(float x, int activation) {
  switch (activation) {
    case INT8_CUDA_RELU: return x < 0.0f ? 0.0f : x;  // NaN stays
    case INT8_CUDA_GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case INT8_CUDA_GELU_TANH: return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    default: return x / (1.0f + expf(-x));
  }
}

}  // namespace int8_cuda
