// CUTLASS's names of element types.
#pragma once

#include <cutlass/numeric_types.h>

#include "common/types.cuh"

namespace int8_cuda {

template <typename T>
struct Cutlass;
template <>
struct Cutlass<__half> {
  using Type = cutlass::half_t;
};
template <>
struct Cutlass<__nv_bfloat16> {
  using Type = cutlass::bfloat16_t;
};

}  // namespace int8_cuda
