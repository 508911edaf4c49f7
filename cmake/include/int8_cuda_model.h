/* LLM.int8() on CUDA: the operations of a transformer around its int8 layers. The rules of int8_cuda.h hold here:
 * device pointers unless "host", all work on `stream`, no allocation, no synchronisation, statuses.
 *
 * Activations are row-major, one row a token. Sums and functions are computed in f32 whatever the element types.
 */
#ifndef INT8_CUDA_MODEL_H
#define INT8_CUDA_MODEL_H

#include "int8_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* y (+)= f(x). y may be x where both have one element type and width. */
typedef struct int8_cuda_transform_params {
  const void *x; /* f16|bf16|f32 [rows, groups * k], of GATED [rows, 2k], row-major, ld = ldx */
  void *y;       /* f16|bf16|f32 [rows, groups * k] row-major, ld = ldy */
  int8_cuda_stream stream;
  int64_t rows, k;
  int64_t groups; /* consecutive runs of k columns, each transformed by itself with the same gain; 1 for GATED */
  int64_t ldx, ldy; /* elements */
  int32_t x_element, y_element;
  int32_t store;    /* INT8_CUDA_OVERWRITE or INT8_CUDA_ACCUMULATE */
  int32_t reserved;
  int8_cuda_transform transform;
} int8_cuda_transform_params;

/* out[r] (+)= table[index[r] + offset] (+ second[second_index[r] + second_offset]). */
typedef struct int8_cuda_gather_params {
  const void *table;           /* f16|bf16|f32 [.., width] row-major, ld = width; or NULL */
  const int32_t *index;        /* i32 [rows] */
  const void *second;          /* likewise, or NULL */
  const int32_t *second_index; /* i32 [rows] */
  float *out;                  /* f32 [rows, width] row-major, ld = width */
  int8_cuda_stream stream;
  int64_t rows, width;
  int64_t offset, second_offset;
  int32_t element, second_element;
  int32_t store;
  int32_t reserved;
} int8_cuda_gather_params;

/* out[index[r]] += weights[r] * x[r]. No index stands twice. */
typedef struct int8_cuda_scatter_add_params {
  const float *x;       /* f32 [rows, width] row-major, ld = width */
  const int32_t *index; /* i32 [rows] */
  const float *weights; /* f32 [rows] */
  float *out;           /* f32 [.., width] row-major, ld = width */
  int8_cuda_stream stream;
  int64_t rows, width;
} int8_cuda_scatter_add_params;

/* Keys and values in pages of INT8_CUDA_PAGE_POSITIONS positions. */
enum { INT8_CUDA_PAGE_POSITIONS = 64 };
typedef struct int8_cuda_kv_cache {
  void *data;                /* T [layers][pages][2][kv_heads][64][head_size]: a page's keys, then its values */
  const int32_t *page_table; /* i32 [sequences][sequence_pages]: the pages of each sequence, in the order of positions */
  int32_t *lengths;          /* i32 [sequences]: positions written; int8_cuda_append_kv sets it */
  uint32_t *overflow;        /* u32 [1]: set to 1 by int8_cuda_append_kv where a finite number became infinite in T */
  int64_t layers, pages, sequence_pages;
  int32_t kv_heads, head_size;
  int32_t element;           /* T: f16|bf16|f32 */
  int32_t reserved;
} int8_cuda_kv_cache;

/* The rows of a forward. Consecutive rows of one sequence, at consecutive positions, are a segment. */
typedef struct int8_cuda_batch {
  const int32_t *positions;         /* i32 [rows] */
  const int32_t *sequences;         /* i32 [rows] */
  const int32_t *segment_starts;    /* i32 [segments + 1]: the first row of each segment, then rows */
  const int32_t *segment_sequences; /* i32 [segments] */
  int64_t rows, segments;
} int8_cuda_batch;

/* Rotates queries and keys in place, then writes keys and values to the cache, and the sequences' lengths. */
typedef struct int8_cuda_append_kv_params {
  void *qkv;        /* f16|bf16|f32 [rows, (heads + 2 * kv_heads) * head_size] row-major, ld = ld: queries, keys, values */
  const float *cos; /* f32 [positions, half]: pairs (i, i + half) of a head are rotated; NULL: nothing is */
  const float *sin;
  int8_cuda_stream stream;
  int64_t ld, layer;
  int32_t heads;    /* query heads; 0: qkv has keys and values only */
  int32_t half;
  int32_t element;
  int32_t reserved;
  int8_cuda_kv_cache cache;
  int8_cuda_batch batch;
} int8_cuda_append_kv_params;

enum { INT8_CUDA_CAUSAL = 0, INT8_CUDA_FULL = 1 };

/* out = softmax(scores) * V for each row and query head h, with the keys and values of kv head h / (heads / kv_heads).
 *
 * score(position of the key j) = cap(scale * q.k) + bias, cap(s) = softcap * tanh(s / softcap) where softcap > 0;
 * bias = -slopes[h] * (position - j), or distance_bias[h][clamp(j - position, -reach, reach) + reach], or 0.
 * CAUSAL: j in [max(0, position + 1 - window), position], window = 0: from 0 on. FULL: j in [0, lengths[sequence]).
 */
typedef struct int8_cuda_attention_params {
  const void *q; /* f16|bf16|f32 [rows, heads * head_size] row-major, ld = ldq */
  void *out;     /* f16|bf16|f32 [rows, heads * head_size] row-major, ld = ldo */
  const float *slopes;        /* f32 [heads], or NULL */
  const float *distance_bias; /* f32 [heads, 2 * reach + 1], or NULL */
  void *workspace;            /* int8_cuda_attention_workspace bytes, 256-byte aligned; need not be zeroed */
  int8_cuda_stream stream;
  size_t workspace_bytes;
  int64_t ldq, ldo, layer;
  int64_t window, reach;
  int32_t heads, mask;
  int32_t q_element, out_element;
  float scale, softcap;
  int8_cuda_kv_cache cache;
  int8_cuda_batch batch;
} int8_cuda_attention_params;

/* y (+)= x * w^T + bias in floating point. f32: no tensor cores, f32 throughout; 16 bits: sums in f32. Rounded once, but for
 * m > 8 a product may be rounded to a 16-bit y's type before the bias, rounded to that type, is added. m <= 8: a row's y
 * does not depend on m. */
typedef struct int8_cuda_float_linear_params {
  const void *x;     /* f16|bf16|f32 [m, k] row-major, ld = ldx */
  const void *w;     /* the same type [n, k] row-major, ld = k */
  const float *bias; /* f32 [n], or NULL */
  void *y;           /* f32, or x's type, [m, n] row-major, ld = ldy */
  void *workspace;   /* 32 MiB suffice for every shape; fewer bytes leave fewer algorithms */
  int8_cuda_stream stream;
  size_t workspace_bytes;
  int64_t m, n, k;
  int64_t ldx, ldy;
  int32_t element, y_element;
  int32_t store;
  int32_t reserved;
} int8_cuda_float_linear_params;

/* How the next token of a row is chosen: int8_cuda_sample draws as int8_nn::Sampler does. */
typedef struct int8_cuda_sampler {
  double uniform;    /* in [0, 1) */
  float temperature; /* 0: the largest logit, the first of equals; the other fields do not matter then */
  float top_p;       /* only the most probable tokens whose probabilities first add up to it; 1: all */
  int32_t top_k;     /* only the most probable; 0: all. Of equal logits the lower ids come first */
  int32_t reserved;
} int8_cuda_sampler;

/* The next token of each row of logits. */
typedef struct int8_cuda_sample_params {
  const float *logits;               /* f32 [rows, vocabulary] row-major, ld = ld */
  const int8_cuda_sampler *samplers; /* [rows] */
  int32_t *tokens;                   /* i32 [rows]; -1 where the row holds a NaN */
  void *workspace;                   /* int8_cuda_sample_workspace bytes, 256-byte aligned */
  int8_cuda_stream stream;
  size_t workspace_bytes;
  int64_t rows, vocabulary, ld;
} int8_cuda_sample_params;

int8_cuda_status int8_cuda_apply_transform(const int8_cuda_transform_params *params);
int8_cuda_status int8_cuda_gather(const int8_cuda_gather_params *params);
int8_cuda_status int8_cuda_scatter_add(const int8_cuda_scatter_add_params *params);
int8_cuda_status int8_cuda_append_kv(const int8_cuda_append_kv_params *params);
/* The three ..._workspace functions use sizes and settings of params, none of its pointers. Enough for every smaller number
 * of rows, too. */
int8_cuda_status int8_cuda_attention_workspace(const int8_cuda_attention_params *params, size_t *bytes);
int8_cuda_status int8_cuda_attention(const int8_cuda_attention_params *params);
/* int8_cuda_append_kv, then int8_cuda_attention, of the same layer, cache, batch and stream; the same cache and out, bit for bit.
 * With append->heads > 0 the queries are those of qkv: q, ldq, heads and q_element are qkv, ld, heads and element.
 * Disagreement: INT8_CUDA_INVALID. The contents of qkv's queries and keys are undefined afterwards.
 *
 * One kernel where rows == segments (no segment is empty), the mask is CAUSAL, q, qkv and cache are of one 16-bit type,
 * head_size is a multiple of 8, half and ld, too, and qkv, data, cos and sin are 16-byte aligned; else two or three. That kernel
 * reads positions, sequences, page_table, cos, sin, slopes and distance_bias, and the keys and values before a row's position,
 * while kernels before it in the stream may still run: none of these may write them, unless a copy or the start of a graph
 * lies between. */
int8_cuda_status int8_cuda_append_and_attend(const int8_cuda_append_kv_params *append, const int8_cuda_attention_params *attention);
int8_cuda_status int8_cuda_float_linear(const int8_cuda_float_linear_params *params);
int8_cuda_status int8_cuda_sample_workspace(const int8_cuda_sample_params *params, size_t *bytes);
int8_cuda_status int8_cuda_sample(const int8_cuda_sample_params *params);

#ifdef __cplusplus
}
#endif
#endif
