// From the public structs to the kernels' parameters.
#pragma once

#include "api/validation.cuh"
#include "gemm/gemm.cuh"
#include "prologue/prologue.cuh"

namespace int8_cuda {

// The weight of int8_cuda_linear_params or int8_cuda_gemm_params.
template <typename Params>
OutlierWeights weight_of(const Params &p) {
  return {p.weight, p.weight_scales, p.weight_zero_points, p.exact, p.exact_index, p.ldw, p.exact_stride_n, p.exact_stride_c};
}

// Whether weight, bias and y can be used with activations of k columns and this encoding.
template <typename Params>
bool valid_weight(const Params &p, int64_t k, int encoding) {
  const bool pointers = (k == 0 || p.weight != nullptr) && p.weight_scales != nullptr && p.y != nullptr;
  const bool sums = encoding == INT8_CUDA_ABSMAX || p.weight_code_sums != nullptr;
  const bool leading = p.ldw >= round_up<int64_t>(k, 16) && p.ldw % 16 == 0 && p.ldy >= p.n;
  return pointers && sums && leading && aligned(p.weight, 16);
}

// Stage 1 into `a`; the workspace's part is the caller's to fill in.
inline PrologueParams prologue_params(const int8_cuda_activations &a, const Settings &settings, const void *x, int64_t ldx) {
  PrologueParams rows{};
  rows.x = x;
  rows.codes = a.codes;
  rows.scales = a.scales;
  rows.zero_points = a.zero_points;
  rows.code_sums = a.code_sums;
  rows.outliers.count = a.outlier_count;
  rows.outliers.columns = a.outlier_columns;
  rows.outliers.x = a.outlier_values;
  rows.m = a.m;
  rows.k = a.k;
  rows.ldx = ldx;
  rows.ldq = a.ldq;
  rows.element = settings.element;
  rows.encoding = settings.encoding;
  rows.granularity = settings.granularity;
  rows.rule = settings.rule;
  rows.outlier_granularity = settings.outlier_granularity;
  rows.row_maximum = settings.row_maximum;
  rows.threshold = settings.threshold;
  rows.early = 1;
  return rows;
}

// Stages 2 and 3 on `a`; the compact operand of W is the caller's to fill in.
template <typename Params>
GemmParams gemm_params(const int8_cuda_activations &a, const Params &p) {
  GemmParams g{};
  g.a = a.codes;
  g.w = p.weight;
  g.row_scales = a.scales;
  g.row_zeros = a.encoding == INT8_CUDA_ZEROPOINT ? a.zero_points : nullptr;
  g.row_sums = a.code_sums;
  g.column_scales = p.weight_scales;
  g.column_zeros = p.weight_zero_points;
  g.column_sums = p.weight_code_sums;
  g.bias = p.bias;
  g.y = p.y;
  g.lda = a.ldq;
  g.ldw = p.ldw;
  g.ldy = p.ldy;
  g.m = static_cast<int32_t>(a.m);
  g.n = static_cast<int32_t>(p.n);
  g.k = static_cast<int32_t>(a.k);
  g.accumulate = p.store == INT8_CUDA_ACCUMULATE ? 1 : 0;
  g.y_is_f32 = p.y_element == INT8_CUDA_F32 ? 1 : 0;
  if (a.rule != INT8_CUDA_RULE_NONE) {
    g.outlier_count = a.outlier_count;
    g.outlier_columns = a.outlier_columns;
    g.outlier_x = a.outlier_values;
  }
  g.weights_are_codes = p.exact == nullptr ? 1 : 0;
  g.weight = weight_of(p);
  return g;
}

}  // namespace int8_cuda
