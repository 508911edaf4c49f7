// The zero-point correction of an int8 product.
#pragma once

#include "common/types.cuh"

namespace int8_cuda {

// sum (qa - za)(qw - zw) = acc - zw*sum(qa) - za*sum(qw) + k*za*zw. It needs 64 bits once k * 254^2 can exceed 2^31.
__device__ __forceinline__ float corrected(int32_t acc, int32_t za, int32_t sum_a, int32_t zw, int32_t sum_w, int32_t k) {
  if (k <= 33000) {
    // Wraps on the way, exact at the end.
    const uint32_t sum = static_cast<uint32_t>(acc) - static_cast<uint32_t>(zw) * static_cast<uint32_t>(sum_a) -
                         static_cast<uint32_t>(za) * static_cast<uint32_t>(sum_w) +
                         static_cast<uint32_t>(k) * static_cast<uint32_t>(za * zw);
    return static_cast<float>(static_cast<int32_t>(sum));
  }
  const int64_t sum = static_cast<int64_t>(acc) - static_cast<int64_t>(zw) * sum_a - static_cast<int64_t>(za) * sum_w +
                      static_cast<int64_t>(k) * (za * zw);
  return static_cast<float>(sum);
}

}  // namespace int8_cuda
