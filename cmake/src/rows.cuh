// Rows of x (or of W): thresholds, outlier columns, codes, and the compact operands of the outlier product.
#pragma once

#include "common.cuh"

namespace int8_cuda {

// The result of the outlier columns' compaction, all in device memory.
struct Outliers {
  uint32_t *mask;   // u32 [ceil(k/32)], bit k%32 of word k/32: column k holds an outlier
  uint32_t *count;  // u32 [1]
  int32_t *columns; // i32 [count], ascending
  // Compact operands in panels of 64 columns (see outlier_index), or null: not made. Columns count..round_up(count, 64) are 0.
  void *x;          // T [m, ld]: the left-out values of the outlier columns, 0 elsewhere
  void *w;          // T [n, ld]: the weights of those columns; see weights_are_codes
  int64_t ld;       // capacity in columns, a multiple of 64; columns beyond it are not written to x and w
};

struct RowsParams {
  const void *x;
  int8_t *codes;
  float *scales;
  int32_t *zero_points; // or null
  int32_t *code_sums;   // or null
  float *thresholds;    // f32 [m]: for the relative rules
  float4 *ranges;       // [m]: for tensor granularity (low, high, not finite, -)
  uint32_t *state;      // of the row pass (row_pass.cuh), or null
  Outliers outliers;
  OutlierWeights weight; // gathered into outliers.w when that is not null
  int64_t m, n, k, ldx, ldq;
  int32_t element, encoding, granularity, rule, outlier_granularity, row_maximum;
  float threshold;
  int32_t early;             // 1: the next kernel may start before this one ends. 0 where the codes may be its weights, which
                             // it reads without waiting
  int32_t weights_are_codes; // 1: outliers.w holds q - z as T, exactly; 0: the weight rounded to T
};

// The thresholds of a relative rule alone.
int8_cuda_status launch_thresholds(const RowsParams &params, cudaStream_t stream, bool overlap);
int8_cuda_status launch_rows(const RowsParams &params, cudaStream_t stream, bool overlap);

}  // namespace int8_cuda
