/* LLM.int8() on CUDA: what several devices of one host that compute each layer together exchange, and their parts of weights.
 * The rules of int8_cuda.h hold here.
 *
 * Rank r of R has its parts in its own memory, which the others read directly. All ranks enqueue the same exchanges in the
 * same order; a kernel waits for its peers' on the device, so that exchanges can be captured in graphs, one a rank.
 */
#ifndef INT8_CUDA_EXCHANGE_H
#define INT8_CUDA_EXCHANGE_H

#include "int8_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { INT8_CUDA_MAX_RANKS = 8 };
/* Bytes of a rank's signals, zeroed once by the caller. */
enum { INT8_CUDA_SIGNAL_BYTES = 65536 };
/* Numbers that a rank can send to another in one small exchange. */
enum { INT8_CUDA_PACKETS = 131072 };
/* Bytes in which a rank receives small exchanges, zeroed once by the caller: for each of the ranks twice INT8_CUDA_PACKETS packets of 8
 * bytes, and the ranges of rows. */
#define INT8_CUDA_RECEIVE_BYTES(ranks) ((size_t)(ranks) * 2 * (INT8_CUDA_PACKETS + 1024) * 8)
/* Columns that int8_cuda_exchange_ranges adds to a row. */
enum { INT8_CUDA_RANGE_COLUMNS = 128 };

/* What the ranks signal each other by. */
typedef struct int8_cuda_signals {
  void *of_rank[INT8_CUDA_MAX_RANKS]; /* INT8_CUDA_SIGNAL_BYTES in the memory of each rank, 256-byte aligned */
  void *receive[INT8_CUDA_MAX_RANKS]; /* INT8_CUDA_RECEIVE_BYTES likewise */
  uint32_t *failed;                   /* u32 [1] of this rank, zeroed once: set to 1 where a peer did not come within 10 s */
  int32_t ranks, rank;
} int8_cuda_signals;

/* out (+)= sum over the ranks of their part, added up in the order of the ranks: the same on all. A rank's part may be written again
 * after the next exchange of this rank, or at once with `waits`. */
typedef struct int8_cuda_exchange_sum_params {
  int8_cuda_signals signals;
  const float *parts[INT8_CUDA_MAX_RANKS]; /* f32 [rows * width] contiguous, 16-byte aligned */
  float *out;                              /* f32 [rows * width] contiguous, 16-byte aligned; no part */
  int8_cuda_stream stream;
  int64_t rows, width;
  int32_t store;
  int32_t waits; /* 1: ends when every rank has read this rank's part */
} int8_cuda_exchange_sum_params;

/* x[:, ..k] = f(input), and x[:, k..k + INT8_CUDA_RANGE_COLUMNS] = (lo, hi, 0, ..): of each row, over all ranks, the least and the
 * greatest value that counts for its scale and 0, so that an absmax or zero-point quantisation of x on each rank has the scale of the whole row. NaN where such
 * a value is not finite. */
typedef struct int8_cuda_exchange_ranges_params {
  int8_cuda_signals signals;
  float *ranges[INT8_CUDA_MAX_RANKS]; /* f32 [rows, 2], 8-byte aligned: each rank's own, written here before the others read it */
  const void *input;   /* f16|bf16|f32 [rows, k], of GATED [rows, 2k], row-major, ld = ldi */
  void *x;             /* f16|bf16|f32 [rows, k + INT8_CUDA_RANGE_COLUMNS] row-major, ld = ldx */
  void *workspace;     /* int8_cuda_exchange_ranges_workspace bytes, 256-byte aligned */
  int8_cuda_stream stream;
  size_t workspace_bytes;
  int64_t rows, k, ldi, ldx;
  int32_t input_element, element;
  int32_t rule;        /* NONE or ABSOLUTE */
  int32_t outlier_granularity, row_maximum;
  float threshold;
  int8_cuda_transform transform;
} int8_cuda_exchange_ranges_params;

/* On rank 0: out = [parts_0 | parts_1 | ..]. Ends on every rank when rank 0 has read its part. */
typedef struct int8_cuda_exchange_columns_params {
  int8_cuda_signals signals;
  const float *parts[INT8_CUDA_MAX_RANKS]; /* f32 [rows, widths[r]] contiguous */
  float *out;                              /* f32 [rows, sum of widths] contiguous; of rank 0 */
  int8_cuda_stream stream;
  int64_t rows;
  int64_t widths[INT8_CUDA_MAX_RANKS];
} int8_cuda_exchange_columns_params;

/* Some columns of a quantised weight, and behind them `zeros` columns that stand for 0. */
typedef struct int8_cuda_slice_params {
  const int8_t *codes;        /* i8 [n, ldq] row-major */
  const int32_t *zero_points; /* i32 [n], or NULL: all 0 */
  int8_t *out;                /* i8 [n, ldo] row-major; columns count + zeros..ldo are set to 0 */
  int32_t *code_sums;         /* i32 [n], sum of the row's codes, those of the zeros included */
  int8_cuda_stream stream;
  int64_t n, first, count, zeros;
  int64_t ldq, ldo;           /* elements; ldo a multiple of 16 */
} int8_cuda_slice_params;

int8_cuda_status int8_cuda_exchange_sum(const int8_cuda_exchange_sum_params *params);
int8_cuda_status int8_cuda_exchange_ranges_workspace(const int8_cuda_exchange_ranges_params *params, size_t *bytes);
int8_cuda_status int8_cuda_exchange_ranges(const int8_cuda_exchange_ranges_params *params);
int8_cuda_status int8_cuda_exchange_columns(const int8_cuda_exchange_columns_params *params);
int8_cuda_status int8_cuda_slice(const int8_cuda_slice_params *params);

#ifdef __cplusplus
}
#endif
#endif
