// The forms of the WGMMA kernel, one row each: from it follow a translation unit (CMakeLists.txt), the launch, and is_wgmma().
#pragma once

#include "gemm/gemm.cuh"

// X(algorithm, rows and columns of a tile, blocks of a cluster along M that share its weights, stages, ping-pong schedule,
//   k-steps whose weights are loaded before the PDL wait)
//
// Stages: as many as fit into 227 KB beside the output tile. Small tiles, bound by memory, need 120 to 144 KB in flight; up to
// K of about 6000 their blocks fit beside those of the single-pass prologue and start early, with weights for all stages.
// With more early k-steps, those of large tiles delay the loads that are needed first: 1024x4096x4096 takes 1.4 us longer with six.
#define INT8_CUDA_WGMMA_FORMS(X)             \
  X(WGMMA_128X256, 128, 256, 2, 4, false, 2) \
  X(WGMMA_128X128, 128, 128, 1, 6, true, 2)  \
  X(WGMMA_64X128, 64, 128, 1, 5, false, 5)   \
  X(WGMMA_64X64, 64, 64, 1, 8, false, 8)     \
  X(WGMMA_64X32, 64, 32, 1, 12, false, 12)

namespace int8_cuda {

// One form, in a translation unit of its own.
template <int kAlgorithm>
int8_cuda_status launch_wgmma_form(const GemmParams &params, int element, cudaStream_t stream, bool overlap);

}  // namespace int8_cuda
