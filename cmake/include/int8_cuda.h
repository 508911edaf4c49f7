/* LLM.int8() on CUDA: the one public header, included by the kernels and mirrored by the crate `int8-cuda-sys`.
 *
 * A layer has three stages with a value between them:
 *   int8_cuda_prologue  x -> int8_cuda_activations: codes, quantization parameters, outliers; made once
 *   int8_cuda_gemm      int8 GEMM and epilogue of one weight on that value -> y; for any number of weights
 *   int8_cuda_linear    both, with one weight: the weight's outlier columns are gathered in the prologue's kernels, and
 *                       M = 1 is one kernel
 *
 * Every operation takes one parameter struct and returns a status. All pointers are device pointers unless their comment
 * says "host"; all work goes to `stream`; nothing allocates or synchronises, so every call can be captured in a CUDA graph.
 * Buffers and workspaces belong to the caller and must live until the stream has passed the call.
 *
 * Numbers. A row of values x with scale s and zero point z has the codes q with x ~ (q - z) * s / 127; -128 never occurs.
 *   absmax:     s = max|x|,      z = 0,                        q = rint(x * (127 / s))
 *   zero-point: s = (hi - lo)/2, z = -rint(lo * 127/s) - 127,  q = clamp(rint(x * (127/s)) + z, -127, 127)
 * with lo = min(x, 0), hi = max(x, 0) over the values that count; s < 2^-120 makes all codes 0; a counted value that is
 * not finite makes s NaN and the row's codes 0.
 */
#ifndef INT8_CUDA_H
#define INT8_CUDA_H

#include <stddef.h>
#include <stdint.h>

#include "int8_cuda_algorithms.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Raised with every change of a struct or an enumerator. */
#define INT8_CUDA_ABI 5

typedef void *int8_cuda_stream; /* cudaStream_t = CUstream; NULL is the legacy default stream */

typedef enum int8_cuda_status {
  INT8_CUDA_OK = 0,
  INT8_CUDA_INVALID = 1,     /* the caller's mistake: a null pointer, a size, an alignment, an unknown enumerator */
  INT8_CUDA_UNSUPPORTED = 2, /* valid, but not on this device or not by this algorithm */
  INT8_CUDA_WORKSPACE = 3,   /* the workspace is smaller than the operation's ..._workspace function says */
  INT8_CUDA_DEVICE = 4       /* the device or its driver failed; int8_cuda_last_device_error names the error */
} int8_cuda_status;

/* Element types of x, y and of exact weight columns. */
enum { INT8_CUDA_F16 = 0, INT8_CUDA_BF16 = 1, INT8_CUDA_F32 = 2 };
enum { INT8_CUDA_ABSMAX = 0, INT8_CUDA_ZEROPOINT = 1 };
/* Scale and zero point of each row, or of the matrix (repeated in scales and zero_points). */
enum { INT8_CUDA_PER_ROW = 0, INT8_CUDA_PER_TENSOR = 1 };
/* Which values are outliers: none; |x| >= threshold; |x| >= threshold * statistic(row). NaN never is one. */
enum { INT8_CUDA_RULE_NONE = 0, INT8_CUDA_RULE_ABSOLUTE = 1, INT8_CUDA_RULE_MEDIAN = 2, INT8_CUDA_RULE_MEAN = 3 };
/* Multiplied in 16 (or 32) bits: an outlier's column in all rows, or the outlier alone. */
enum { INT8_CUDA_COLUMN = 0, INT8_CUDA_VALUE = 1 };
/* Which values count for a row's scale: those multiplied in int8, or all that are no outliers themselves. */
enum { INT8_CUDA_MAXIMUM_PAPER = 0, INT8_CUDA_MAXIMUM_BITSANDBYTES = 1 };

/* y = ... or y += ..., the sum in f32, rounded once. */
enum { INT8_CUDA_OVERWRITE = 0, INT8_CUDA_ACCUMULATE = 1 };

/* Functions of rows, the prologue's first step. */
enum {
  INT8_CUDA_IDENTITY = 0,
  INT8_CUDA_RMS_NORM = 1,   /* x / sqrt(mean(x^2) + eps) * gain */
  INT8_CUDA_LAYER_NORM = 2, /* (x - mean) / sqrt(var + eps) * gain + bias */
  INT8_CUDA_ACTIVATION = 3, /* act(x) */
  INT8_CUDA_GATED = 4,      /* act(x[..k]) * x[k..2k] */
  INT8_CUDA_SCALE = 5       /* factor * x, then, with cap > 0, cap * tanh(./cap) */
};
enum {
  INT8_CUDA_RELU = 0,      /* max(x, 0) */
  INT8_CUDA_GELU = 1,      /* x * Phi(x), by the error function */
  INT8_CUDA_GELU_TANH = 2, /* x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) */
  INT8_CUDA_SILU = 3       /* x / (1 + exp(-x)) */
};

/* A function of rows. */
typedef struct int8_cuda_transform {
  const float *gain; /* f32 [k] of the norms */
  const float *bias; /* f32 [k] of LAYER_NORM, or NULL */
  int32_t function;
  int32_t activation;
  float eps, factor, cap;
  int32_t reserved;
} int8_cuda_transform;

/* How the int8 GEMM is computed: chosen by shape (gemm/choice.cpp), or a row of int8_cuda_algorithms.h. */
typedef enum int8_cuda_algorithm {
#define INT8_CUDA_ROW(name, number, ...) INT8_CUDA_##name = number,
  INT8_CUDA_ALGORITHMS(INT8_CUDA_ROW)
#undef INT8_CUDA_ROW
  INT8_CUDA_AUTO = 0
} int8_cuda_algorithm;

/* Properties of the current device. */
typedef struct int8_cuda_device_info {
  int32_t compute_major, compute_minor;
  int32_t multiprocessors;
  int32_t has_wgmma;    /* 1: the sm_90a kernels run here */
  int32_t has_cublaslt; /* 1: libcublasLt.so.13 was found */
  int32_t driver_version, runtime_version; /* 13000 means 13.0 */
  int32_t reserved;
  uint64_t l2_bytes;
  uint64_t memory_bytes;
  char name[256];
} int8_cuda_device_info;

/* Rows of f16|bf16|f32 to int8 codes. Used for x (with an outlier rule) and for W (rule NONE). */
typedef struct int8_cuda_quantize_params {
  const void *x;        /* f16|bf16|f32 [rows, inner] row-major, ld = ldx */
  int8_t *codes;        /* i8 [rows, inner] row-major, ld = ldq; columns inner..ldq are set to 0 */
  float *scales;        /* f32 [rows] */
  int32_t *zero_points; /* i32 [rows]; may be NULL for absmax */
  int32_t *code_sums;   /* i32 [rows], sum of the row's codes; may be NULL */
  void *workspace;      /* int8_cuda_quantize_workspace bytes, 256-byte aligned */
  int8_cuda_stream stream;
  size_t workspace_bytes;
  int64_t rows, inner;
  int64_t ldx, ldq;     /* elements; ldq a multiple of 16, codes 16-byte aligned */
  int32_t element, encoding, granularity;
  int32_t rule, outlier_granularity, row_maximum;
  float threshold;
  int32_t reserved;
} int8_cuda_quantize_params;

/* Activations as codes and outliers: written by int8_cuda_prologue, read by int8_cuda_gemm. The caller's buffers and sizes. */
typedef struct int8_cuda_activations {
  int8_t *codes;            /* i8 [m, k] row-major, ld = ldq; columns k..ldq are set to 0; 16-byte aligned */
  float *scales;            /* f32 [m] */
  int32_t *zero_points;     /* i32 [m]; may be NULL for absmax */
  int32_t *code_sums;       /* i32 [m], sum of the row's codes; needed by weights with zero points, else may be NULL */
  uint32_t *outlier_count;  /* u32 [1], columns with an outlier; this and the next two may be NULL for rule NONE */
  int32_t *outlier_columns; /* i32 [k], the first outlier_count of it written, ascending */
  void *outlier_values;     /* element type [m, round_up(k,64)] in panels of 64 columns, each row-major, 16-byte aligned: (m, j) is
                             * x[m, outlier_columns[j]], 0 where that is no outlier; the last panel ends with zeros */
  int64_t m, k, ldq;        /* elements; ldq = round_up(k,16) */
  int32_t element, encoding, rule;
  int32_t reserved;
} int8_cuda_activations;

/* Stage 1: outlier rule and quantisation of x. */
typedef struct int8_cuda_prologue_params {
  const void *x;       /* f16|bf16|f32 [m, k] row-major, ld = ldx; not read again by int8_cuda_gemm */
  void *workspace;     /* int8_cuda_prologue_workspace bytes, 256-byte aligned; zeroed before its first use, and again after a
                        * call that failed. Not shared with int8_cuda_linear; calls of any shape may follow one another, on
                        * one stream at a time */
  int8_cuda_stream stream;
  size_t workspace_bytes;
  int64_t ldx;         /* elements */
  int32_t granularity, outlier_granularity, row_maximum;
  float threshold;
  int8_cuda_activations activations;
} int8_cuda_prologue_params;

/* Stages 2 and 3: y = GEMM and epilogue of one weight; the formula is int8_cuda_linear's. */
typedef struct int8_cuda_gemm_params {
  const int8_t *weight;              /* as in int8_cuda_linear_params */
  const float *weight_scales;
  const int32_t *weight_zero_points;
  const int32_t *weight_code_sums;
  const void *exact;
  const int32_t *exact_index;
  const float *bias;
  void *y;
  void *workspace;                   /* int8_cuda_gemm_workspace bytes, 256-byte aligned; need not be zeroed */
  int8_cuda_stream stream;
  size_t workspace_bytes;
  int64_t n;
  int64_t ldw, ldy;
  int64_t exact_stride_n, exact_stride_c;
  int32_t algorithm;                 /* any of the layer's but GEMV and GEMV_TMA */
  int32_t store;
  int32_t y_element;                 /* as in int8_cuda_linear_params */
  int32_t reserved;
  int8_cuda_activations activations;
} int8_cuda_gemm_params;

/* Workspace and algorithm of int8_cuda_gemm. */
typedef struct int8_cuda_gemm_layout {
  uint64_t total;    /* bytes of the workspace; enough for every smaller m, too */
  int32_t algorithm; /* the algorithm for this m */
  int32_t reserved;
} int8_cuda_gemm_layout;

/* y = f(x) * W^T + bias, LLM.int8(): outlier rule, quantisation of f(x), int8 product, outlier product, scales, bias. f(x) is
 * rounded to `element` and stands for x below; f is IDENTITY, a norm, ACTIVATION or GATED.
 *
 * y[m,n] = acc[m,n] * (s_x[m]/127) * (s_w[n]/127) + sum over outliers k of x[m,k] * w[n,k] + bias[n], in f32, rounded once.
 * acc is the exact integer sum of (q_x - z_x)(q_w - z_w). w[n,k] is the exact value where kept, else (q_w - z_w)*s_w/127.
 */
typedef struct int8_cuda_linear_params {
  const void *x;                     /* x_element [m, k], of GATED [m, 2k], row-major, ld = ldx */
  const int8_t *weight;              /* i8 [n, k] row-major, ld = ldw; columns k..round_up(k,16) are 0; 16-byte aligned */
  const float *weight_scales;        /* f32 [n] */
  const int32_t *weight_zero_points; /* i32 [n], or NULL: all 0 */
  const int32_t *weight_code_sums;   /* i32 [n]; needed when x is zero-point encoded, else may be NULL */
  const void *exact;                 /* exact weight columns in x's element type, or NULL: none kept */
  const int32_t *exact_index;        /* i32 [k]: index c of column k among the kept ones or -1; NULL: c = k, all kept */
  const float *bias;                 /* f32 [n], or NULL */
  void *y;                           /* x's element type or f32 [m, n] row-major, ld = ldy; no part of x, weights or workspace */
  void *workspace;                   /* int8_cuda_linear_workspace bytes, 256-byte aligned; zeroed before its first use, and
                                      * again after a call that failed, by a memset or a kernel that has ended. Calls of
                                      * any shape may follow one another, on one stream at a time */
  int8_cuda_stream stream;
  size_t workspace_bytes;
  int64_t m, n, k;
  int64_t ldx, ldw, ldy;             /* elements; ldw a multiple of 16 */
  int64_t exact_stride_n, exact_stride_c; /* element (n, c) of exact lies at n*stride_n + c*stride_c */
  int32_t element, encoding, granularity; /* of f(x) */
  int32_t rule, outlier_granularity, row_maximum;
  float threshold;
  int32_t algorithm;
  int32_t store;
  int32_t y_element; /* element, or INT8_CUDA_F32: a residual stream is wider than x */
  int32_t x_element; /* likewise */
  int32_t reserved;
  int8_cuda_transform transform;
} int8_cuda_linear_params;

/* Where int8_cuda_linear's intermediate results lie in the workspace: byte offsets, for tests and statistics. GEMV and GEMV_TMA
 * have none. */
typedef struct int8_cuda_linear_layout {
  uint64_t codes;        /* i8 [m, ldq] */
  uint64_t scales;       /* f32 [m] */
  uint64_t zero_points;  /* i32 [m] */
  uint64_t code_sums;    /* i32 [m] */
  uint64_t outlier_count;/* u32 [1] columns with an outlier; not written for rule NONE */
  uint64_t outlier_columns; /* i32 [outlier_count], ascending */
  int64_t ldq;
  uint64_t total;        /* bytes of the workspace */
  int32_t algorithm;     /* AUTO resolved */
  int32_t reserved;
} int8_cuda_linear_layout;

/* out = a * w^T in exact i32; k <= 133144. */
typedef struct int8_cuda_product_params {
  const int8_t *a; /* i8 [m, k] row-major, ld = lda; columns k..round_up(k,16) are 0; 16-byte aligned */
  const int8_t *w; /* i8 [n, k] row-major, ld = ldw; likewise */
  int32_t *out;    /* i32 [m, n] row-major, ld = ldo */
  void *workspace; /* for CUBLASLT only; may be NULL */
  int8_cuda_stream stream;
  size_t workspace_bytes;
  int64_t m, n, k;
  int64_t lda, ldw, ldo; /* elements; lda and ldw multiples of 16 */
  int32_t algorithm;     /* AUTO, MMA or CUBLASLT */
  int32_t reserved;
} int8_cuda_product_params;

/* values[r,k] = (codes[r,k] - z[r]) * s[r] / 127, computed in f32, rounded once. */
typedef struct int8_cuda_dequantize_params {
  const int8_t *codes;        /* i8 [rows, inner] row-major, ld = ldq */
  const float *scales;        /* f32 [rows] */
  const int32_t *zero_points; /* i32 [rows], or NULL: all 0 */
  void *values;               /* f16|bf16|f32 [rows, inner] row-major, ld = ldv */
  int8_cuda_stream stream;
  int64_t rows, inner;
  int64_t ldq, ldv;
  int32_t element, reserved;
} int8_cuda_dequantize_params;

/* dx = dy * dequantise(W), the input gradient: dx[m,k] = sum_n dy[m,n] * (q[n,k] - z[n]) * s[n] / 127.
 * f16 and bf16: dequantised weights rounded to the element type, sums in f32. f32: f32 throughout. */
typedef struct int8_cuda_gradient_params {
  const void *dy;             /* f16|bf16|f32 [m, n] row-major, ld = lddy */
  const int8_t *weight;       /* i8 [n, k] row-major, ld = ldw */
  const float *weight_scales; /* f32 [n] */
  const int32_t *weight_zero_points; /* i32 [n], or NULL: all 0 */
  void *dx;                   /* dy's element type [m, k] row-major, ld = lddx */
  int8_cuda_stream stream;
  int64_t m, n, k;
  int64_t lddy, ldw, lddx;
  int32_t element, reserved;
} int8_cuda_gradient_params;

/* y = x * w^T in 16 bits by cuBLASLt: the baseline of the int8 layer's measurements.
 * Every call queries the heuristic: capture it in a graph where its host time matters. */
typedef struct int8_cuda_dense_params {
  const void *x;   /* f16|bf16 [m, k] row-major, contiguous */
  const void *w;   /* f16|bf16 [n, k] row-major, contiguous */
  void *y;         /* f16|bf16 [m, n] row-major, contiguous */
  void *workspace;
  int8_cuda_stream stream;
  size_t workspace_bytes;
  int64_t m, n, k;
  int32_t element;
  int32_t candidate; /* index into the heuristic's list, best first */
} int8_cuda_dense_params;

int32_t int8_cuda_abi(void);
/* Host: sizes and offsets of the structs above, for tests of a binding. */
const uint64_t *int8_cuda_abi_table(size_t *count);
/* Host string, static: the meaning of a status. */
const char *int8_cuda_status_text(int8_cuda_status status);
/* Host string, static: the CUDA error of the last INT8_CUDA_DEVICE status on this thread. */
const char *int8_cuda_last_device_error(void);
int8_cuda_status int8_cuda_get_device_info(int8_cuda_device_info *info);

int8_cuda_status int8_cuda_quantize_workspace(const int8_cuda_quantize_params *params, size_t *bytes);
int8_cuda_status int8_cuda_quantize(const int8_cuda_quantize_params *params);

/* The three ..._workspace functions use sizes and settings of params, none of its pointers. */
int8_cuda_status int8_cuda_prologue_workspace(const int8_cuda_prologue_params *params, size_t *bytes);
int8_cuda_status int8_cuda_prologue(const int8_cuda_prologue_params *params);
int8_cuda_status int8_cuda_gemm_workspace(const int8_cuda_gemm_params *params, int8_cuda_gemm_layout *layout);
int8_cuda_status int8_cuda_gemm(const int8_cuda_gemm_params *params);

int8_cuda_status int8_cuda_linear_workspace(const int8_cuda_linear_params *params, int8_cuda_linear_layout *layout);
int8_cuda_status int8_cuda_linear(const int8_cuda_linear_params *params);

int8_cuda_status int8_cuda_product(const int8_cuda_product_params *params);
int8_cuda_status int8_cuda_dequantize(const int8_cuda_dequantize_params *params);
int8_cuda_status int8_cuda_gradient(const int8_cuda_gradient_params *params);

/* How many algorithms cuBLASLt's heuristic offers for this shape (0: library not found), at most 8. */
int8_cuda_status int8_cuda_dense_candidates(const int8_cuda_dense_params *params, int32_t *count);
int8_cuda_status int8_cuda_dense(const int8_cuda_dense_params *params);

#ifdef __cplusplus
}
#endif
#endif
