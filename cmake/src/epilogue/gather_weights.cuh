// The compact operand of the outlier product on W's side, for a GEMM whose prologue did not know W.
#pragma once

#include "common/outliers.cuh"
#include "common/status.cuh"

namespace int8_cuda {

struct GatherParams {
  const uint32_t *count;   // u32 [1]
  const int32_t *columns;  // i32 [count]
  OutlierWeights weight;
  void *to;                // T [n, ld] in panels (outlier_index); columns count..round_up(count, 64) become 0
  int64_t n, ld;
  int32_t weights_are_codes;  // 1: q - z as T, exactly; 0: the weight rounded to T
};

// Nothing is written where *count > ld. f16 and bf16.
int8_cuda_status launch_gather_weights(const GatherParams &params, int element, cudaStream_t stream, bool overlap);

}  // namespace int8_cuda
