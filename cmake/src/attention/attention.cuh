// Attention over a paged KV cache: the parts that its kernels share, and their launch functions.
#pragma once

#include "common/launch.cuh"
#include "int8_cuda_model.h"

namespace int8_cuda {

constexpr int kPagePositions = INT8_CUDA_PAGE_POSITIONS;
constexpr int kMaxHeadSize = 256;
constexpr float kLog2E = 1.4426950408889634f;

// How decode.cu partitions the keys of a row, and the append that comes with it. Every number depends on sizes alone, none on
// lengths: a captured graph stays valid.
struct DecodePlan {
  int splits;        // blocks a row and tile of query heads
  int group, tiles;  // query heads a kv head, and tiles of 8 of them
  int chunk_tiles;   // tiles of 16 positions a split takes at least, where a row has several
  int tensor_core;   // 1: mma.sync, for f16|bf16 caches whose head size is a multiple of 8; 0: f32 FMA
  int cache_vectors; // 1: the FMA kernel loads 4 elements of a key at a time
  int query_vectors; // 1: queries of the cache's type are loaded 8 at a time
  float *partial_out;      // f32 [rows, heads, splits, head_size], not normalised
  float2 *partial_sums;    // f32 [rows, heads, splits]: (maximum in units of log2, sum)
  int appends;             // 1: rotates, and appends the rows' keys and values; q is qkv
  int half;                // pairs of a head that are rotated; 0: none
  int early_tiles;         // tiles of the warps of all splits of a row, behind their first, prefetched to L2 before the PDL wait
  const float *cos, *sin;  // f32 [positions, half]
};
DecodePlan decode_plan(const int8_cuda_attention_params &p, const Device &device);
// Bytes of the partial results, for any number of rows.
uint64_t decode_workspace(const int8_cuda_attention_params &p, const Device &device);
int8_cuda_status launch_decode(const int8_cuda_attention_params &p, const Device &device);
// Append and attention by one kernel; both have been validated, and agree.
bool decode_appends(const int8_cuda_append_kv_params &append, const int8_cuda_attention_params &p, const Device &device);
int8_cuda_status launch_append_and_attend(const int8_cuda_append_kv_params &append, const int8_cuda_attention_params &p, const Device &device);

// Any head size up to 256, any element types, any mask and bias; f32 FMA.
int8_cuda_status launch_generic_attention(const int8_cuda_attention_params &p, const Device &device);

// Any mask and bias; f16|bf16 caches whose head size is a multiple of 8; mma.sync.
bool prefill_mma_serves(const int8_cuda_attention_params &p);
int8_cuda_status launch_prefill_mma(const int8_cuda_attention_params &p, const Device &device);

int8_cuda_status launch_append_kv(const int8_cuda_append_kv_params &p, bool overlap);

// Elements of the keys of a page, and of its values.
__host__ __device__ inline int64_t value_elements(const int8_cuda_kv_cache &c) { return static_cast<int64_t>(c.kv_heads) * kPagePositions * c.head_size; }

#ifdef __CUDACC__

// An element of a buffer whose type is known at run time.
__device__ __forceinline__ float load_element(const void *from, int64_t index, int element) {
  if (element == INT8_CUDA_F16) return to_f32(static_cast<const __half *>(from)[index]);
  if (element == INT8_CUDA_BF16) return to_f32(static_cast<const __nv_bfloat16 *>(from)[index]);
  return static_cast<const float *>(from)[index];
}
__device__ __forceinline__ void store_element(void *to, int64_t index, float value, int element) {
  if (element == INT8_CUDA_F16) {
    static_cast<__half *>(to)[index] = from_f32<__half>(value);
  } else if (element == INT8_CUDA_BF16) {
    static_cast<__nv_bfloat16 *>(to)[index] = from_f32<__nv_bfloat16>(value);
  } else {
    static_cast<float *>(to)[index] = value;
  }
}

// (a cos - b sin, b cos + a sin). Rounded alike wherever it is inlined: a compiler that chose the fused operation would not.
__device__ __forceinline__ void rotate(float *a, float *b, float cos, float sin) {
  const float x = *a, y = *b;
  *a = __fmaf_rn(x, cos, -__fmul_rn(y, sin));
  *b = __fmaf_rn(y, cos, __fmul_rn(x, sin));
}

// 2^x with a relative error of 2^-22; 2^-inf = 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Keys [first, end) of a row.
struct Span {
  int first, end;
};
__device__ __forceinline__ Span span_of(const int8_cuda_attention_params &p, int position, int sequence) {
  const int capacity = static_cast<int>(p.cache.sequence_pages) * kPagePositions;
  if (p.mask == INT8_CUDA_FULL) return {0, min(p.cache.lengths[sequence], capacity)};
  const int first = p.window > 0 && p.window <= position ? position + 1 - static_cast<int>(p.window) : 0;
  return {first, min(position + 1, capacity)};
}

// tanh(x) = 1 - 2 / (e^2x + 1) with an absolute error of 2^-22: enough where weights are rounded to 16 bits.
__device__ __forceinline__ float tanh_approx(float x) { return 1.0f - __fdividef(2.0f, exp2_approx(2.0f * kLog2E * x) + 1.0f); }

// log2(e) * (cap(scale * q.k) + bias); `dot` is scale * q.k, slope() slopes[head] where there are slopes.
template <bool kExact, typename Slope>
__device__ __forceinline__ float score_log2(const int8_cuda_attention_params &p, float dot, Slope slope, int head, int position, int key) {
  if (p.softcap > 0.0f) dot = p.softcap * (kExact ? tanhf(dot / p.softcap) : tanh_approx(__fdividef(dot, p.softcap)));
  if (p.slopes != nullptr) {
    dot -= slope() * static_cast<float>(position - key);
  } else if (p.distance_bias != nullptr) {
    const int reach = static_cast<int>(p.reach);
    dot += p.distance_bias[head * (2 * p.reach + 1) + min(max(key - position, -reach), reach) + reach];
  }
  return dot * kLog2E;
}
template <bool kExact>
__device__ __forceinline__ float score_log2(const int8_cuda_attention_params &p, float dot, int head, int position, int key) {
  return score_log2<kExact>(p, dot, [&] { return p.slopes[head]; }, head, position, key);
}

// Index of the first element of kv head `kv_head` in the keys of a page; the values lie value_elements behind.
__device__ __forceinline__ int64_t page_index(const int8_cuda_kv_cache &c, int64_t layer, int page, int kv_head) {
  return ((layer * c.pages + page) * 2 * c.kv_heads + kv_head) * kPagePositions * c.head_size;
}

// A tile of the batch: tile `within` of segment `segment`, rows [start, end) of the batch. Tiles have `height` of a segment's
// rows * `group` row and head pairs.
struct SegmentTile {
  int segment, within, start, end;
};
// Tile `index`; segment -1 beyond the last. There are at most rows * group / height + segments. Called by whole warps.
__device__ __forceinline__ SegmentTile segment_tile(const int8_cuda_batch &batch, int height, int group, int index) {
  const int lane = threadIdx.x % 32, segments = static_cast<int>(batch.segments);
  int before = 0;
  for (int base = 0; base < segments; base += 32) {
    int start = 0, end = 0;
    if (base + lane < segments) {
      start = batch.segment_starts[base + lane];
      end = batch.segment_starts[base + lane + 1];
    }
    const int tiles = ceil_div((end - start) * group, height);
    int sum = tiles;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(~0u, sum, offset);
      if (lane >= offset) sum += other;
    }
    const unsigned reached = __ballot_sync(~0u, before + sum > index);
    if (reached != 0) {
      const int source = __ffs(static_cast<int>(reached)) - 1;
      return {base + source, index - before - __shfl_sync(~0u, sum - tiles, source), __shfl_sync(~0u, start, source), __shfl_sync(~0u, end, source)};
    }
    before += __shfl_sync(~0u, sum, 31);
  }
  return {-1, 0, 0, 0};
}

// Rows [first, end) of one segment: tile `index` of `height` rows; empty beyond the last. Called by whole warps.
struct RowTile {
  int first, end, sequence;
};
__device__ __forceinline__ RowTile row_tile(const int8_cuda_batch &batch, int height, int index) {
  const SegmentTile tile = segment_tile(batch, height, 1, index);
  if (tile.segment < 0) return {0, 0, 0};
  const int first = tile.start + tile.within * height;
  return {first, min(first + height, tile.end), batch.segment_sequences[tile.segment]};
}

#endif

}  // namespace int8_cuda
