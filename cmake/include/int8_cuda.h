/* LLM.int8() on CUDA: the one public header, included by the kernels and mirrored by the crate `int8-cuda-sys`.
 *
 * Every operation takes one parameter struct and returns a status. All pointers are device pointers unless their comment
 * says "host"; all work goes to `stream`; nothing allocates, synchronises or keeps state, so every call can be captured
 * in a CUDA graph. Workspaces belong to the caller and must live until the stream has passed the call.
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

#ifdef __cplusplus
extern "C" {
#endif

/* Raised with every change of a struct or an enumerator. */
#define INT8_CUDA_ABI 2

typedef void *int8_cuda_stream; /* cudaStream_t = CUstream; NULL is the legacy default stream */

typedef enum int8_cuda_status {
  INT8_CUDA_OK = 0,
  INT8_CUDA_INVALID = 1,     /* the caller's mistake: a null pointer, a size, an alignment, an unknown enumerator */
  INT8_CUDA_UNSUPPORTED = 2, /* correct, but not on this device or not by the algorithm asked for */
  INT8_CUDA_WORKSPACE = 3,   /* the workspace is smaller than the operation's ..._workspace function says */
  INT8_CUDA_DEVICE = 4       /* the device or its driver failed; int8_cuda_last_device_error says with what */
} int8_cuda_status;

/* Element types of x, y and of exact weight columns. */
enum { INT8_CUDA_F16 = 0, INT8_CUDA_BF16 = 1, INT8_CUDA_F32 = 2 };
enum { INT8_CUDA_ABSMAX = 0, INT8_CUDA_ZEROPOINT = 1 };
/* One pair of constants for each row, or one for the matrix (repeated in scales and zero_points). */
enum { INT8_CUDA_PER_ROW = 0, INT8_CUDA_PER_TENSOR = 1 };
/* Which values are outliers: none; |x| >= threshold; |x| >= threshold * statistic(row). NaN never is one. */
enum { INT8_CUDA_RULE_NONE = 0, INT8_CUDA_RULE_ABSOLUTE = 1, INT8_CUDA_RULE_MEDIAN = 2, INT8_CUDA_RULE_MEAN = 3 };
/* What leaves the int8 product: the outlier's column for all rows, or the value alone. */
enum { INT8_CUDA_COLUMN = 0, INT8_CUDA_VALUE = 1 };
/* Which values count for a row's scale: those that stay in the int8 product, or all that are no outliers themselves. */
enum { INT8_CUDA_MAXIMUM_PAPER = 0, INT8_CUDA_MAXIMUM_BITSANDBYTES = 1 };

/* How an int8 product is computed. */
typedef enum int8_cuda_algorithm {
  INT8_CUDA_AUTO = 0,          /* the choice table in linear.cu */
  INT8_CUDA_SKINNY = 1,        /* M <= 32: weights streamed once through registers, mma.sync, sm_80 and later */
  INT8_CUDA_MMA = 2,           /* any size: 128x128 tiles, cp.async + mma.sync, sm_80 and later */
  INT8_CUDA_WGMMA_128X256 = 3, /* sm_90a: TMA + wgmma, clusters of two along M */
  INT8_CUDA_WGMMA_128X128 = 4, /* sm_90a: TMA + wgmma, a tile a warpgroup, so that epilogues run beside products */
  INT8_CUDA_WGMMA_64X128 = 5,  /* sm_90a: TMA + wgmma, few rows */
  INT8_CUDA_SKINNY_ONE = 7,    /* M = 1, x f16|bf16 and 16-byte aligned, K <= 65536: SKINNY that quantises x itself; leaves no
                                * intermediate results in the workspace */
  INT8_CUDA_STREAM = 8,        /* M = 1, x f16|bf16 and 16-byte aligned, K <= 16384 a multiple of 128, sm_90: SKINNY_ONE whose
                                * weights come through shared memory by the copy engine */
  INT8_CUDA_WGMMA_64X64 = 9,   /* sm_90a: TMA + wgmma, few rows and smaller N */
  INT8_CUDA_WGMMA_64X32 = 10,  /* sm_90a: TMA + wgmma, few rows and smaller N still */
  INT8_CUDA_CUBLASLT = 6       /* int8_cuda_product alone: cuBLASLt's i8 x i8 -> i32, if the library is found */
} int8_cuda_algorithm;

/* What can be learned of the current device. */
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

/* y = x * W^T + bias, LLM.int8(): outlier rule, quantisation of x, int8 product, outlier product, scales, bias.
 *
 * y[m,n] = acc[m,n] * (s_x[m]/127) * (s_w[n]/127) + sum over outliers k of x[m,k] * w[n,k] + bias[n], in f32, rounded once.
 * acc is the exact integer sum of (q_x - z_x)(q_w - z_w). w[n,k] is the exact value where kept, else (q_w - z_w)*s_w/127.
 */
typedef struct int8_cuda_linear_params {
  const void *x;                     /* f16|bf16|f32 [m, k] row-major, ld = ldx */
  const int8_t *weight;              /* i8 [n, k] row-major, ld = ldw; columns k..round_up(k,16) are 0; 16-byte aligned */
  const float *weight_scales;        /* f32 [n] */
  const int32_t *weight_zero_points; /* i32 [n], or NULL: all 0 */
  const int32_t *weight_code_sums;   /* i32 [n]; needed when x is zero-point encoded, else may be NULL */
  const void *exact;                 /* exact weight columns in x's element type, or NULL: none kept */
  const int32_t *exact_index;        /* i32 [k]: index c of column k among the kept ones or -1; NULL: c = k, all kept */
  const float *bias;                 /* f32 [n], or NULL */
  void *y;                           /* x's element type [m, n] row-major, ld = ldy */
  void *workspace;                   /* int8_cuda_linear_workspace bytes, 256-byte aligned; zeroed before its first use, and
                                      * again after a call that failed, by a memset or a kernel that has ended. Calls of
                                      * any shape may follow one another, on one stream at a time */
  int8_cuda_stream stream;
  size_t workspace_bytes;
  int64_t m, n, k;
  int64_t ldx, ldw, ldy;             /* elements; ldw a multiple of 16 */
  int64_t exact_stride_n, exact_stride_c; /* element (n, c) of exact lies at n*stride_n + c*stride_c */
  int32_t element, encoding, granularity; /* of x */
  int32_t rule, outlier_granularity, row_maximum;
  float threshold;
  int32_t algorithm;
} int8_cuda_linear_params;

/* Where int8_cuda_linear leaves its intermediate results in the workspace: byte offsets, for tests and statistics.
 * SKINNY_ONE and STREAM leave none. */
typedef struct int8_cuda_linear_layout {
  uint64_t codes;        /* i8 [m, ldq] */
  uint64_t scales;       /* f32 [m] */
  uint64_t zero_points;  /* i32 [m] */
  uint64_t code_sums;    /* i32 [m] */
  uint64_t outlier_count;/* u32 [1] columns with an outlier; not written for rule NONE */
  uint64_t outlier_columns; /* i32 [outlier_count], ascending */
  int64_t ldq;
  uint64_t total;        /* bytes of the workspace */
  int32_t algorithm;     /* what AUTO stands for here */
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

/* y = x * w^T in 16 bits by cuBLASLt: what the int8 layer is measured against.
 * The heuristic is asked at every call: capture the call in a graph where its host time matters. */
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
/* Host string, static: what a status means. */
const char *int8_cuda_status_text(int8_cuda_status status);
/* Host string, static: the CUDA error of the last INT8_CUDA_DEVICE status on this thread. */
const char *int8_cuda_last_device_error(void);
int8_cuda_status int8_cuda_get_device_info(int8_cuda_device_info *info);

int8_cuda_status int8_cuda_quantize_workspace(const int8_cuda_quantize_params *params, size_t *bytes);
int8_cuda_status int8_cuda_quantize(const int8_cuda_quantize_params *params);

/* Uses the sizes and settings of params, none of its pointers. */
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
