// Stage 1: rows of x (or of W) as codes, with the outliers of x apart. Parameters and launches of its kernels.
#pragma once

#include "common/outliers.cuh"
#include "common/status.cuh"

namespace int8_cuda {

// Outlier columns and the compact operands of the outlier product, in device memory.
struct Outliers {
  uint32_t *mask;   // u32 [ceil(k/32)], bit k%32 of word k/32: column k holds an outlier
  uint32_t *count;  // u32 [1], or null: neither count, columns nor operands are made
  int32_t *columns; // i32 [count], ascending
  // Compact operands in panels of 64 columns (outlier_index), or null: not made. Columns count..round_up(count, 64) are 0.
  void *x;          // T [m, ld]: the outliers of those columns, 0 where a value is none
  void *w;          // T [n, ld]: the weights of those columns; see weights_are_codes
  int64_t ld;       // capacity in columns, a multiple of 64; columns beyond it are not written to x and w
};

// Up to so many rows, one block a row searches all rows for outlier columns by itself.
constexpr int kFewRows = 16;

struct PrologueParams {
  const void *x;
  int8_t *codes;
  float *scales;
  int32_t *zero_points; // or null
  int32_t *code_sums;   // or null
  float *thresholds;    // f32 [m]: for the relative rules
  float4 *ranges;       // [m]: for tensor granularity (low, high, not finite, -)
  uint32_t *counters;   // of the single-pass prologue (single_pass.cuh), or null: it is not used
  Outliers outliers;
  OutlierWeights weight; // gathered into outliers.w where that is not null
  int64_t m, n, k, ldx, ldq;
  int32_t element, encoding, granularity, rule, outlier_granularity, row_maximum;
  float threshold;
  int32_t early;             // 1: PDL trigger at the start. 0 where the codes may be the next kernel's weights, which it reads
                             // before its wait
  int32_t weights_are_codes; // 1: outliers.w holds q - z as T, exactly; 0: the weight rounded to T
  int32_t resets_counters;   // single pass: 1: zeroes its counters itself; 0: the wgmma kernel behind it does
};

// The thresholds of a relative rule, if the rule is one.
int8_cuda_status launch_thresholds(const PrologueParams &params, cudaStream_t stream, bool overlap);
// The mask of outlier columns. clusters: thread-block clusters can be used.
int8_cuda_status launch_outlier_mask(const PrologueParams &params, bool vector, cudaStream_t stream, bool overlap);
// Everything, in as many kernels as it takes.
int8_cuda_status launch_quantize_rows(const PrologueParams &params, cudaStream_t stream, bool overlap);
// The same by the single-pass kernel where it supports the operands and is chosen. *single_pass: whether it was.
int8_cuda_status launch_prologue(const PrologueParams &params, const Device &device, cudaStream_t stream, bool *single_pass);

}  // namespace int8_cuda
