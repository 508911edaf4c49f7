// The int8 product with the layer's epilogue, in three forms that share these parameters.
#pragma once

#include "common.cuh"

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
  void *y;                      // T [m, n] row-major, ld = ldy
  int64_t lda, ldw, ldy;
  int32_t m, n, k;

  const uint32_t *outlier_count;   // u32 [1], or null: no outliers
  const int32_t *outlier_columns;  // i32 [count]
  const void *outlier_x;           // T [m, ld] in panels (outlier_index), zero-padded to a multiple of 64 columns
  const void *outlier_w;           // T [n, ld], likewise
  int64_t outlier_ld;
  int32_t weights_are_codes;       // outlier_w holds q - z: the column scale comes after the outlier product
  int32_t only_beyond_capacity;    // MMA: do nothing unless *outlier_count > outlier_ld

  uint32_t *state;                 // WGMMA zeroes these words for the next row pass; or null
  int32_t state_words;

  // MMA and SKINNY read the outliers' weights where they lie, and MMA their x.
  OutlierWeights weight;
  const void *x;                // T [m, k] row-major, ld = ldx
  const float *thresholds;      // f32 [m], or null: threshold for all rows
  int64_t ldx;
  float threshold;
  int32_t by_value;             // only values of at least the threshold take part, not their whole column
};

// Largest M of the skinny kernel: four tiles of eight rows of x.
constexpr int kSkinnyRows = 32;

// K up to which one row's codes, mask and list fit into shared memory two blocks at a time (228 KB an SM).
constexpr int kSkinnyOneInner = 65536;

// K up to which one row's values stay in registers: 8 pieces of 8 a thread.
constexpr int kStreamInner = 16384;
bool stream_takes(int64_t m, int64_t n, int64_t k, int element, const Device &device);
int8_cuda_status launch_stream(const GemmParams &params, int element, bool zero_point, cudaStream_t stream, int multiprocessors);

int8_cuda_status launch_skinny_one(const GemmParams &params, int element, bool zero_point, cudaStream_t stream, bool overlap);
int8_cuda_status launch_skinny(const GemmParams &params, int element, cudaStream_t stream, bool overlap);
int8_cuda_status launch_mma(const GemmParams &params, int element, cudaStream_t stream, bool overlap);
// The plain product, i32 [m, n] into y.
int8_cuda_status launch_mma_i32(const GemmParams &params, cudaStream_t stream);
int8_cuda_status launch_wgmma(const GemmParams &params, int element, int algorithm, cudaStream_t stream, bool overlap);

}  // namespace int8_cuda
