// Stages 2 and 3: the int8 GEMM with its epilogue. Parameters and launches of its kernels, one file a technique.
#pragma once

#include "common/outliers.cuh"
#include "common/status.cuh"

namespace int8_cuda {

struct GemmParams {
  const int8_t *a;              // i8 [m, k] row-major, ld = lda
  const int8_t *w;              // i8 [n, k] row-major, ld = ldw
  const float *row_scales;      // f32 [m]
  const int32_t *row_zeros;     // i32 [m], or null: all 0
  const int32_t *row_sums;      // i32 [m], needed with column_zeros
  const float *column_scales;   // f32 [n]
  const int32_t *column_zeros;  // i32 [n], or null: all 0
  const int32_t *column_sums;   // i32 [n], needed with row_zeros
  const float *bias;            // f32 [n], or null
  void *y;                      // T, or f32 where y_is_f32, [m, n] row-major, ld = ldy
  int64_t lda, ldw, ldy;
  int32_t m, n, k;
  int32_t accumulate;           // 1: y is added in f32 before the rounding
  int32_t y_is_f32;

  const uint32_t *outlier_count;   // u32 [1], or null: no outliers
  const int32_t *outlier_columns;  // i32 [count]
  const void *outlier_x;           // T [m, ld] in panels (outlier_index), zero-padded to a multiple of 64 columns
  const void *outlier_w;           // T [n, ld], likewise
  int64_t outlier_ld;
  int32_t outlier_x_complete;      // MMA: outlier_x has all outlier columns, x is not read
  int32_t weights_are_codes;       // outlier_w holds q - z: the column scale comes after the outlier product
  int32_t only_beyond_capacity;    // MMA: do nothing unless *outlier_count > outlier_ld

  uint32_t *counters;              // WGMMA zeroes these words for the next single-pass prologue; or null
  int32_t counter_words;

  // MMA and SMALL_M read the outliers' weights from W, and MMA their x from x unless outlier_x is complete.
  OutlierWeights weight;
  const void *x;                // T [m, k] row-major, ld = ldx; of GEMV_TMA f32 where x_is_f32, and of GATED [m, 2k]
  const float *thresholds;      // f32 [m], or null: threshold for all rows
  int64_t ldx;
  float threshold;
  int32_t by_value;             // only values of at least the threshold take part, not their whole column

  // GEMV_TMA: the row that is quantised is transform(x), rounded to T.
  int8_cuda_transform transform;
  int32_t x_is_f32;
};

// Largest M of SMALL_M: four tiles of eight rows of x.
constexpr int kSmallM = 32;
// Largest K of GEMV: one row's codes, mask and list fit into shared memory two blocks at a time (228 KB an SM).
constexpr int kGemvInner = 65536;
// Largest K of GEMV_TMA: one row's values stay in registers, 8 chunks of 8 a thread.
constexpr int kGemvTmaInner = 32768, kGemvTmaPairInner = 16384;

bool gemv_tma_supports(int64_t m, int64_t n, int64_t k, int element, const Device &device);
// The kind of an algorithm, by int8_cuda_algorithms.h.
enum class Kind { NONE, GEMM, WGMMA, MMA, FUSED, PRODUCT };
Kind kind_of(int algorithm);
// Whether the kernel is a form: f16 and bf16, the outliers' weights compact.
inline bool is_form(int algorithm) { return kind_of(algorithm) == Kind::WGMMA || kind_of(algorithm) == Kind::MMA; }
inline bool is_gemv(int algorithm) { return kind_of(algorithm) == Kind::FUSED; }

// A GEMM's shape and x's element type, by which its algorithm is chosen.
struct GemmShape {
  int64_t m, n, k;
  int element;
};
// INT8_CUDA_AUTO resolved, else `algorithm`. fused: the prologue is part of the call, so that GEMV and GEMV_TMA are possible.
int choose_algorithm(int algorithm, const GemmShape &shape, bool fused, const Device &device);
// INVALID for an unknown algorithm, UNSUPPORTED for one that cannot compute the shape on this device.
int8_cuda_status check_algorithm(int algorithm, const GemmShape &shape, bool fused, const Device &device);

// Whether GEMV_TMA computes the function of a row that it quantises.
bool gemv_tma_transforms(const int8_cuda_transform &transform, int64_t k, int x_element, int element);
// M = 1, the prologue inside: p.x instead of p.a.
int8_cuda_status launch_gemv_tma(const GemmParams &params, int element, bool zero_point, cudaStream_t stream, int multiprocessors);
int8_cuda_status launch_gemv(const GemmParams &params, int element, bool zero_point, cudaStream_t stream, bool overlap);

int8_cuda_status launch_small_m(const GemmParams &params, int element, cudaStream_t stream, bool overlap);
int8_cuda_status launch_mma(const GemmParams &params, int element, cudaStream_t stream, bool overlap);
int8_cuda_status launch_form(const GemmParams &params, int element, int algorithm, cudaStream_t stream, bool overlap);
// One of these three by `algorithm`; behind a form, MMA for more outlier columns than outlier_ld.
int8_cuda_status launch_gemm(const GemmParams &params, int element, int algorithm, cudaStream_t stream, bool overlap);

// The integer product alone, i32 [m, n] into y.
int8_cuda_status launch_mma_i32(const GemmParams &params, cudaStream_t stream);

int8_cuda_status launch_input_gradient(const int8_cuda_gradient_params &params);

// cuBLASLt is looked up at the first use; without it these return INT8_CUDA_UNSUPPORTED.
bool cublaslt_found();
int8_cuda_status cublaslt_product(const int8_cuda_product_params &params);
int8_cuda_status cublaslt_dense(const int8_cuda_dense_params &params, int *candidates);

}  // namespace int8_cuda
