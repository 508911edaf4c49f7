// Attention of few query rows: bound by the bytes of K and V, which a block reads once for up to 8 query heads of a kv head.
//
// Split-KV: a row's keys are partitioned among `splits` blocks; those beyond the row's span end at once. They come last in the
// grid, so that they do not delay the others. The partial results are combined by a second kernel.
//
// decode_mma computes S^T [keys, heads] = K * Q^T and O^T [dims, heads] = V^T * P^T with the heads as the 8 columns of
// mma.sync. K and V go from global memory straight to the registers of the A operand: a dot product does not depend on the
// order of its terms, nor an accumulator's row on which dim it stands for, so a thread's 16 consecutive bytes serve as the
// scattered elements that the instruction names.
//
// With `appends` it also rotates the queries and the new key and appends the new key and value. While weights stream, a load
// takes microseconds: everything that no kernel of the forward writes (all but the row of qkv) is loaded before the PDL wait.
#include <algorithm>
#include <type_traits>

#include "attention/attention.cuh"
#include "gemm/mma_sync.cuh"

namespace int8_cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kHeads = 8;          // query heads of a block: the columns of mma.sync
constexpr int kTilePositions = 16; // keys of a warp's iteration: the rows of mma.sync

// 2^(a - b), 0 for a = -inf even where b = -inf: a part without keys.
__device__ __forceinline__ float weight_of(float a, float b) { return a == -INFINITY ? 0.0f : exp2_approx(a - b); }

// Rows of up to 512 keys take one split: four iterations of a warp cost less than the second kernel.
constexpr int kSingleTiles = 32;

// How many splits of a span have keys (at least 1), and how many tiles of 16 positions each has.
__device__ __forceinline__ int active_splits(const DecodePlan &plan, const Span &span, int *chunk_tiles) {
  const int tiles = span.end > span.first ? ceil_div(span.end, kTilePositions) - span.first / kTilePositions : 0;
  *chunk_tiles = max(plan.chunk_tiles, tiles);
  if (plan.splits == 1 || tiles <= kSingleTiles) return 1;  // without the latency of two divisions
  *chunk_tiles = max(plan.chunk_tiles, ceil_div(tiles, plan.splits));
  return ceil_div(tiles, *chunk_tiles);
}

// A block's part.
struct Work {
  int row, kv_head;
  int head, heads;  // query heads [head, head + heads)
  int position, sequence;
  int split, active;
  int first, end;   // keys
};
// Grid: x kv heads * tiles, y rows, z splits.
__device__ __forceinline__ Work work_of(const int8_cuda_attention_params &p, const DecodePlan &plan) {
  Work w;
  w.row = static_cast<int>(blockIdx.y);
  w.split = static_cast<int>(blockIdx.z);
  w.position = p.batch.positions[w.row];
  w.sequence = p.batch.sequences[w.row];
  const int group = plan.group, tile = plan.tiles > 1 ? static_cast<int>(blockIdx.x) % plan.tiles : 0;
  w.kv_head = plan.tiles > 1 ? static_cast<int>(blockIdx.x) / plan.tiles : static_cast<int>(blockIdx.x);
  w.head = w.kv_head * group + tile * kHeads;
  w.heads = min(kHeads, group - tile * kHeads);
  const Span span = span_of(p, w.position, w.sequence);
  int chunk_tiles;
  w.active = active_splits(plan, span, &chunk_tiles);
  const int first_tile = span.first / kTilePositions + w.split * chunk_tiles;
  w.first = max(span.first, first_tile * kTilePositions);
  w.end = min(span.end, (first_tile + chunk_tiles) * kTilePositions);
  return w;
}

// A block's result for its keys: out is not normalised, maximum in units of log2.
struct BlockResult {
  const float *out;  // [heads][stride]
  const float *maximum, *sum;  // [heads]
};

// Stores the rows' output, or this split's part of it. All threads of an active block call it. kStride: the stride of out where
// it is a constant, else 0 for the head size.
template <int kStride>
__device__ __forceinline__ void finish(const int8_cuda_attention_params &p, const DecodePlan &plan, const Work &w, const BlockResult &r) {
  const int size = p.cache.head_size, stride = kStride > 0 ? kStride : size;
  __syncthreads();
  for (int i = threadIdx.x; i < w.heads * stride; i += kThreads) {
    const int h = i / stride, d = i % stride;
    if (d >= size) continue;
    if (w.active == 1) {
      store_element(p.out, w.row * p.ldo + static_cast<int64_t>(w.head + h) * size + d, r.sum[h] != 0.0f ? __fdividef(r.out[i], r.sum[h]) : 0.0f, p.out_element);
    } else {
      const int64_t part = (static_cast<int64_t>(w.row) * p.heads + w.head + h) * plan.splits + w.split;
      plan.partial_out[part * size + d] = r.out[i];
      if (d == 0) plan.partial_sums[part] = make_float2(r.maximum[h], r.sum[h]);
    }
  }
}

template <typename E>
struct Type {
  using Element = E;
};
// function(Type<E>) with the type of the queries.
template <typename Function>
__device__ __forceinline__ void with_query_type(const int8_cuda_attention_params &p, Function function) {
  if (p.q_element == INT8_CUDA_F16) {
    function(Type<__half>{});
  } else if (p.q_element == INT8_CUDA_BF16) {
    function(Type<__nv_bfloat16>{});
  } else {
    function(Type<float>{});
  }
}

__device__ __forceinline__ uint32_t transpose_8x8(uint32_t rows) {
  uint32_t columns;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(columns) : "r"(rows));
  return columns;
}
__device__ __forceinline__ uint32_t low_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5410); }
__device__ __forceinline__ uint32_t high_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); }
__device__ __forceinline__ uint32_t word(const uint4 &v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }
__device__ __forceinline__ void prefetch_to_l2(const void *address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }

// The elements of q, key and value of a row that a thread loads, rotates and stores: chunks of 8 of the rows of shared memory,
// kHeads queries, the new key, the new value.
template <typename T, int kSize>
struct NewRow {
  static constexpr int kKey = kHeads, kValue = kHeads + 1, kRows = kHeads + 2;
  static constexpr int kChunks = kSize / 8, kEach = ceil_div(kRows * kChunks, kThreads);
  float cos[kEach][8], sin[kEach][8];
  int half;      // 0: no rotation
  bool has_key;  // this block attends to the new key

  static __device__ __forceinline__ int row_of(int e) { return (static_cast<int>(threadIdx.x) + e * kThreads) / kChunks; }
  static __device__ __forceinline__ int dim_of(int e) { return (static_cast<int>(threadIdx.x) + e * kThreads) % kChunks * 8; }
  __device__ __forceinline__ bool inside(const Work &w, int row) const { return row < w.heads || (has_key && row >= kKey && row < kRows); }
  __device__ __forceinline__ bool rotates(const Work &w, int row) const { return half > 0 && row != kValue && inside(w, row); }

  // Before the PDL wait.
  __device__ __forceinline__ void load_angles(const int8_cuda_attention_params &p, const DecodePlan &plan, const Work &w) {
    // As in append_kv, a position outside the sequence's pages is neither rotated nor appended.
    const bool valid = w.position >= 0 && w.position < p.cache.sequence_pages * kPagePositions;
    half = valid ? plan.half : 0;
    has_key = valid && w.split == w.active - 1;
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int dim = dim_of(e);
      if (!rotates(w, row_of(e)) || dim >= half) continue;
      const int64_t from = static_cast<int64_t>(w.position) * half + dim;
#pragma unroll
      for (int i = 0; i < 8; i += 4) {
        *reinterpret_cast<float4 *>(&cos[e][i]) = *reinterpret_cast<const float4 *>(plan.cos + from + i);
        *reinterpret_cast<float4 *>(&sin[e][i]) = *reinterpret_cast<const float4 *>(plan.sin + from + i);
      }
    }
  }

  // After it. rows: shared memory, zero beyond the head size and in rows not inside. to_cache: the first element of the new key
  // in the cache, or null.
  __device__ __forceinline__ void store(const int8_cuda_attention_params &p, const Work &w, T *rows, int stride, T *to_cache) const {
    const int size = p.cache.head_size;
    uint4 low[kEach], high[kEach];
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int row = row_of(e), dim = dim_of(e);
      const int head = row < kHeads ? w.head + row : p.heads + w.kv_head + (row == kValue ? p.cache.kv_heads : 0);
      const T *from = static_cast<const T *>(p.q) + w.row * p.ldq + static_cast<int64_t>(head) * size + dim;
      low[e] = high[e] = make_uint4(0, 0, 0, 0);
      if (inside(w, row) && dim < size) low[e] = *reinterpret_cast<const uint4 *>(from);
      if (rotates(w, row) && dim < half) high[e] = *reinterpret_cast<const uint4 *>(from + half);
    }
    bool overflow = false;
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int row = row_of(e), dim = dim_of(e);
      const bool pair = rotates(w, row) && dim < half, second = rotates(w, row) && dim >= half && dim < 2 * half;
      if (row >= kRows || second) continue;  // the thread of the first has the second
      if (pair) {
        T *a = reinterpret_cast<T *>(&low[e]), *b = reinterpret_cast<T *>(&high[e]);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          float x = to_f32(a[i]), y = to_f32(b[i]);
          rotate(&x, &y, cos[e][i], sin[e][i]);
          a[i] = from_f32<T>(x);
          b[i] = from_f32<T>(y);
          overflow |= row == kKey && ((isfinite(x) && isinf(to_f32(a[i]))) || (isfinite(y) && isinf(to_f32(b[i]))));
        }
      }
      *reinterpret_cast<uint4 *>(rows + row * stride + dim) = low[e];
      if (pair) *reinterpret_cast<uint4 *>(rows + row * stride + dim + half) = high[e];
      if (to_cache == nullptr || row < kKey || dim >= size) continue;
      T *to = to_cache + (row == kValue ? value_elements(p.cache) : 0) + dim;
      *reinterpret_cast<uint4 *>(to) = low[e];
      if (pair) *reinterpret_cast<uint4 *>(to + half) = high[e];
    }
    if (overflow && to_cache != nullptr) *p.cache.overflow = 1;
  }
};

// Bytes of shared memory of decode_mma: queries (and the new key and value), then per warp and for the block maxima and sums,
// then accumulators.
constexpr int kQueryPad = 32;  // elements, 64 bytes: the 8 lanes of a phase read all 32 banks
inline size_t mma_shared_bytes(int padded, int heads, bool appends) {
  return (kHeads + (appends ? 2 : 0)) * (padded + kQueryPad) * 2 + (kWarps + 1) * kHeads * 2 * sizeof(float) + sizeof(float) * (kWarps + 1) * heads * padded;
}

// kSize: head size rounded up to 64, 128 or 256. kAppends: plan.appends.
template <typename T, int kSize, bool kAppends>
__global__ void __launch_bounds__(kThreads, kSize <= 128 ? 2 : 1) decode_mma(const __grid_constant__ int8_cuda_attention_params p, const __grid_constant__ DecodePlan plan) {
  extern __shared__ __align__(16) uint8_t shared[];
  constexpr int kQueryStride = kSize + kQueryPad;
  T *queries = reinterpret_cast<T *>(shared);
  const T *new_key = queries + kHeads * kQueryStride, *new_value = new_key + kQueryStride;  // with kAppends
  float *maxima = reinterpret_cast<float *>(queries + (kHeads + (kAppends ? 2 : 0)) * kQueryStride);  // [kWarps + 1][kHeads], the last is the block's
  float *sums = maxima + (kWarps + 1) * kHeads;
  float *warp_out = sums + (kWarps + 1) * kHeads;  // [kWarps][heads][kSize]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, part = lane % 4;
  if constexpr (!kAppends) {
    pdl_trigger();
    pdl_wait();
  }
  const Work w = work_of(p, plan);
  if (w.split >= w.active) return;
  NewRow<T, kSize> new_row;
  if constexpr (kAppends) new_row.load_angles(p, plan, w);
  // Keys [w.first, cached_end) come from the cache, the new one from shared memory.
  const int cached_end = kAppends ? min(w.end, w.position) : w.end;
  float *block_out = warp_out + kWarps * w.heads * kSize;

  const int size = p.cache.head_size;
  const int64_t page_stride = 2 * value_elements(p.cache);
  // This thread's first key and value of page 0.
  const T *first_key = static_cast<const T *>(p.cache.data) + page_index(p.cache, p.layer, 0, w.kv_head) + group * size + part * 8;
  const T *first_value = static_cast<const T *>(p.cache.data) + page_index(p.cache, p.layer, 0, w.kv_head) + value_elements(p.cache) + part * 2 * size + group * 8;
  const int32_t *pages = p.cache.page_table + w.sequence * p.cache.sequence_pages;
  // The warp's tiles: first_tile + i * kWarps. Lane l holds the page of tile l, 32 + l, ...
  const int first_tile = w.first / kTilePositions + warp, end_tile = ceil_div(w.end, kTilePositions);
  const int tiles = first_tile < end_tile ? ceil_div(end_tile - first_tile, kWarps) : 0;
  int page_of_lane = 0;
  auto page_of = [&](int i) {
    if (i % 32 == 0) {
      const int tile = first_tile + (i + lane) * kWarps;
      page_of_lane = tile < end_tile ? pages[tile * kTilePositions / kPagePositions] : 0;
    }
    return __shfl_sync(~0u, page_of_lane, i % 32);
  };
  uint4 k[kSize / 32][2];  // [dims 32c + 8 part ..][keys group, group + 8]
  uint4 v[kSize / 64][4];  // [dims 64c + 8 group ..][keys 2 part, + 1, + 8, + 9]
  const uint4 zero = make_uint4(0, 0, 0, 0);
  auto load_keys = [&](int tile, int64_t offset) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = tile * kTilePositions + group + half * 8;
      const bool inside = key >= w.first && key < cached_end;
      const T *from = first_key + offset + half * 8 * size;
#pragma unroll
      for (int c = 0; c < kSize / 32; ++c) {
        k[c][half] = inside && c * 32 + part * 8 < size ? *reinterpret_cast<const uint4 *>(from + c * 32) : zero;
      }
    }
  };
  auto load_values = [&](int tile, int64_t offset) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = tile * kTilePositions + part * 2 + i % 2 + i / 2 * 8;
      // A masked key has p = 0, and what its page holds may be NaN.
      const bool inside = key >= w.first && key < cached_end;
      const T *from = first_value + offset + (i % 2 + i / 2 * 8) * size;
#pragma unroll
      for (int c = 0; c < kSize / 64; ++c) {
        v[c][i] = inside && c * 64 + group * 8 < size ? *reinterpret_cast<const uint4 *>(from + c * 64) : zero;
      }
    }
  };
  // Elements between page 0 and the i-th tile.
  auto offset_of = [&](int i) {
    const int tile = first_tile + i * kWarps;
    return page_of(i) * page_stride + tile % (kPagePositions / kTilePositions) * kTilePositions * size;
  };

  float out[kSize / 16][4] = {};  // [dims 64(i/4) + 8 group + 2(i%4)]: heads 2 part, + 1; then the same of the next dim
  float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
  int64_t offset = 0;
  if (tiles > 0) {
    offset = offset_of(0);
    load_keys(first_tile, offset);
    load_values(first_tile, offset);
  }

  // Queries of another type are scaled before they are rounded, so that an f32 query stays in f16's range.
  const bool same = kAppends || p.q_element == (std::is_same_v<T, __half> ? INT8_CUDA_F16 : INT8_CUDA_BF16);
  const float scale = same ? p.scale : 1.0f;
  const bool plain = p.softcap <= 0.0f && p.slopes == nullptr && p.distance_bias == nullptr;
  const int64_t q_from = w.row * p.ldq + static_cast<int64_t>(w.head) * size;
  float slopes[2];  // of the heads of s
  if (kAppends && p.slopes != nullptr) {
#pragma unroll
    for (int h = 0; h < 2; ++h) slopes[h] = p.slopes[w.head + min(part * 2 + h, w.heads - 1)];
  }
  int new_tile = -1;
  if constexpr (kAppends) {
    T *to_cache = nullptr;
    if (new_row.has_key) {
      new_tile = w.position / kTilePositions;
      if (w.head == w.kv_head * plan.group) {
        to_cache = static_cast<T *>(p.cache.data) + page_index(p.cache, p.layer, pages[w.position / kPagePositions], w.kv_head) + w.position % kPagePositions * size;
      }
    }
    // At most 7: those whose pages the lanes have.
    const int early = min(tiles, 1 + min(7, w.active == 1 ? plan.early_tiles : plan.early_tiles / w.active));
    for (int i = 1; i < early; ++i) {
      const int64_t at = page_index(p.cache, p.layer, 0, w.kv_head) + offset_of(i);
      const T *keys = static_cast<const T *>(p.cache.data) + at;
      for (int line = lane * 64; line < kTilePositions * size; line += 32 * 64) {  // elements, 128 bytes
        prefetch_to_l2(keys + line);
        prefetch_to_l2(keys + value_elements(p.cache) + line);
      }
    }
    pdl_wait();
    // Not before: the next kernel's loads of weights would queue before this one's of keys and values, 5 us in OPT-6.7B.
    pdl_trigger();
    new_row.store(p, w, queries, kQueryStride, to_cache);
    if (blockIdx.x == 0 && w.split == w.active - 1 && threadIdx.x == 0) p.cache.lengths[w.sequence] = w.position + 1;
  } else if (same && plan.query_vectors) {
    constexpr int kChunks = kSize / 8;
    for (int c = threadIdx.x; c < kHeads * kChunks; c += kThreads) {
      const int h = c / kChunks, d = c % kChunks * 8;
      const bool inside = h < w.heads && d < size;
      *reinterpret_cast<uint4 *>(queries + h * kQueryStride + d) = inside ? *reinterpret_cast<const uint4 *>(static_cast<const T *>(p.q) + q_from + h * size + d) : zero;
    }
  } else {
    with_query_type(p, [&](auto type) {
      using E = typename decltype(type)::Element;
      constexpr int kEach = kHeads * kSize / kThreads;
      float value[kEach];  // all loads before the first store
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        const int c = threadIdx.x + e * kThreads, h = c / kSize, d = c % kSize;
        value[e] = h < w.heads && d < size ? to_f32(static_cast<const E *>(p.q)[q_from + h * size + d]) : 0.0f;
      }
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        const int c = threadIdx.x + e * kThreads;
        queries[c / kSize * kQueryStride + c % kSize] = from_f32<T>(same ? value[e] : p.scale * value[e]);
      }
    });
  }
  __syncthreads();
  for (int i = 0; i < tiles; ++i) {
    const int tile = first_tile + i * kWarps;
    if (kAppends && tile == new_tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (group + half * 8 == w.position % kTilePositions) {
#pragma unroll
          for (int c = 0; c < kSize / 32; ++c) k[c][half] = *reinterpret_cast<const uint4 *>(new_key + c * 32 + part * 8);
        }
      }
      __syncwarp();
    }
    float s[4] = {};  // keys group (0, 1) and group + 8 (2, 3), heads 2 part and + 1
#pragma unroll
    for (int c = 0; c < kSize / 32; ++c) {
      const uint4 q = *reinterpret_cast<const uint4 *>(queries + group * kQueryStride + c * 32 + part * 8);
      const uint32_t first[4] = {k[c][0].x, k[c][1].x, k[c][0].y, k[c][1].y}, second[4] = {k[c][0].z, k[c][1].z, k[c][0].w, k[c][1].w};
      mma_16bit(s, first, q.x, q.y, T{});
      mma_16bit(s, second, q.z, q.w, T{});
    }
    // The next keys, and after P * V the next values: half of a tile's bytes are always in flight.
    const bool more = i + 1 < tiles;
    if (more) {
      offset = offset_of(i + 1);
      load_keys(tile + kWarps, offset);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int key = tile * kTilePositions + group + j / 2 * 8, head = w.head + min(part * 2 + j % 2, w.heads - 1);
      const auto slope = [&] { return kAppends ? slopes[j % 2] : p.slopes[head]; };
      s[j] = plain ? s[j] * (scale * kLog2E) : score_log2<false>(p, s[j] * scale, slope, head, w.position, key);
      if (key < w.first || key >= w.end) s[j] = -INFINITY;
    }
    float keep[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float next = fmaxf(s[h], s[2 + h]);
#pragma unroll
      for (int offset = 4; offset < 32; offset *= 2) next = fmaxf(next, __shfl_xor_sync(~0u, next, offset));
      next = fmaxf(next, maximum[h]);
      keep[h] = exp2_approx(maximum[h] - next);
      maximum[h] = next;
      s[h] = exp2_approx(s[h] - next);
      s[2 + h] = exp2_approx(s[2 + h] - next);
      sum[h] = sum[h] * keep[h] + s[h] + s[2 + h];
    }
    if (__any_sync(~0u, keep[0] != 1.0f || keep[1] != 1.0f)) {
#pragma unroll
      for (int t = 0; t < kSize / 16; ++t) {
#pragma unroll
        for (int j = 0; j < 4; ++j) out[t][j] *= keep[j % 2];
      }
    }
    if (kAppends && tile == new_tile) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        if (part * 2 + r % 2 + r / 2 * 8 == w.position % kTilePositions) {
#pragma unroll
          for (int c = 0; c < kSize / 64; ++c) v[c][r] = *reinterpret_cast<const uint4 *>(new_value + c * 64 + group * 8);
        }
      }
      __syncwarp();
    }
    const uint32_t p0 = transpose_8x8(pack2<T>(s[0], s[1])), p1 = transpose_8x8(pack2<T>(s[2], s[3]));
#pragma unroll
    for (int c = 0; c < kSize / 64; ++c) {
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        const uint32_t w0 = word(v[c][0], t), w1 = word(v[c][1], t), w2 = word(v[c][2], t), w3 = word(v[c][3], t);
        const uint32_t a[4] = {low_halves(w0, w1), high_halves(w0, w1), low_halves(w2, w3), high_halves(w2, w3)};
        mma_16bit(out[c * 4 + t], a, p0, p1, T{});
      }
    }
    if (more) load_values(tile + kWarps, offset);
  }

#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) sum[h] += __shfl_xor_sync(~0u, sum[h], offset);
    const int head = part * 2 + h;
    if (group == 0) {
      maxima[warp * kHeads + head] = maximum[h];
      sums[warp * kHeads + head] = sum[h];
    }
    if (head < w.heads) {
      float *to = warp_out + (warp * w.heads + head) * kSize + group * 8;
#pragma unroll
      for (int t = 0; t < kSize / 16; ++t) {
        *reinterpret_cast<float2 *>(to + t / 4 * 64 + t % 4 * 2) = make_float2(out[t][h], out[t][2 + h]);
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < w.heads * kSize; i += kThreads) {
    const int h = i / kSize, d = i % kSize;
    float block_maximum = -INFINITY, block_sum = 0.0f, value = 0.0f;
#pragma unroll
    for (int o = 0; o < kWarps; ++o) block_maximum = fmaxf(block_maximum, maxima[o * kHeads + h]);
#pragma unroll
    for (int o = 0; o < kWarps; ++o) {
      const float weight = weight_of(maxima[o * kHeads + h], block_maximum);
      block_sum += weight * sums[o * kHeads + h];
      value += weight * warp_out[(o * w.heads + h) * kSize + d];
    }
    block_out[i] = value;
    if (d == 0) {
      maxima[kWarps * kHeads + h] = block_maximum;
      sums[kWarps * kHeads + h] = block_sum;
    }
  }
  finish<kSize>(p, plan, w, {block_out, maxima + kWarps * kHeads, sums + kWarps * kHeads});
}

// Bytes of shared memory of decode_fma, at most 33 KB: queries, probabilities, statistics, then the thread groups' results and the block's.
inline size_t fma_shared_bytes(int size) {
  const int groups = kThreads / round_up(size, 32);
  return sizeof(float) * kHeads * (static_cast<size_t>(round_up(size, 4)) + kThreads + kWarps + 4 + static_cast<size_t>(groups + 1) * size);
}

template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T element[4];
};

// Any head size and element type. A thread has a key for the scores, then a dim for the sum over the values.
template <typename T>
__global__ void __launch_bounds__(kThreads) decode_fma(const __grid_constant__ int8_cuda_attention_params p, const __grid_constant__ DecodePlan plan) {
  extern __shared__ __align__(16) float shared_f32[];
  const int size = p.cache.head_size, width = round_up(size, 32), groups = kThreads / width;
  float *queries = shared_f32;                              // [round_up(size, 4)][kHeads]
  float *weights = queries + round_up(size, 4) * kHeads;    // [kThreads][kHeads]
  float *warp_stats = weights + kThreads * kHeads;          // [kWarps][kHeads]
  float *maxima = warp_stats + kWarps * kHeads, *sums = maxima + kHeads, *keeps = sums + kHeads;
  float *group_out = keeps + 2 * kHeads;                    // [groups][kHeads][size]
  float *block_out = group_out + groups * kHeads * size;    // [kHeads][size]
  __shared__ int64_t page_starts[kThreads / kPagePositions + 1];  // first element of each page of an iteration
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  pdl_trigger();
  pdl_wait();
  const Work w = work_of(p, plan);
  if (w.split >= w.active) return;
  with_query_type(p, [&](auto type) {
    using E = typename decltype(type)::Element;
    const E *from = static_cast<const E *>(p.q) + w.row * p.ldq + static_cast<int64_t>(w.head) * size;
    for (int d = thread; d < size; d += kThreads) {
#pragma unroll
      for (int h = 0; h < kHeads; ++h) queries[d * kHeads + h] = h < w.heads ? p.scale * to_f32(from[h * size + d]) : 0.0f;
    }
  });
  if (thread < kHeads) {
    maxima[thread] = -INFINITY;
    sums[thread] = 0.0f;
  }
  __syncthreads();

  const T *data = static_cast<const T *>(p.cache.data);
  const int32_t *pages = p.cache.page_table + w.sequence * p.cache.sequence_pages;
  const int dim = thread % width, part = thread / width;
  const T *first_value = data + value_elements(p.cache) + dim;
  float out[kHeads] = {};
  for (int base = w.first; base < w.end; base += kThreads) {
    const int key = base + thread, base_page = base / kPagePositions;
    if (const int page = base_page + thread; thread <= kThreads / kPagePositions && page * kPagePositions < w.end) {
      page_starts[thread] = page_index(p.cache, p.layer, pages[page], w.kv_head);
    }
    __syncthreads();
    float s[kHeads];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) s[h] = 0.0f;
    if (key < w.end) {
      const T *from = data + page_starts[key / kPagePositions - base_page] + key % kPagePositions * size;
      auto add = [&](int d, T value) {
        const float x = to_f32(value);
#pragma unroll
        for (int h = 0; h < kHeads; ++h) s[h] = fmaf(x, queries[d * kHeads + h], s[h]);
      };
      if (plan.cache_vectors) {
#pragma unroll 8
        for (int d = 0; d < size; d += 4) {
          const Four<T> four = *reinterpret_cast<const Four<T> *>(from + d);
#pragma unroll
          for (int e = 0; e < 4; ++e) add(d + e, four.element[e]);
        }
      } else {
        for (int d = 0; d < size; ++d) add(d, from[d]);
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      s[h] = key < w.end ? score_log2<true>(p, s[h], w.head + min(h, w.heads - 1), w.position, key) : -INFINITY;
      float most = s[h];
#pragma unroll
      for (int offset = 16; offset > 0; offset /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
      if (lane == 0) warp_stats[warp * kHeads + h] = most;
    }
    __syncthreads();
    if (thread < kHeads) {
      float most = maxima[thread];
#pragma unroll
      for (int o = 0; o < kWarps; ++o) most = fmaxf(most, warp_stats[o * kHeads + thread]);
      keeps[thread] = weight_of(maxima[thread], most);
      maxima[thread] = most;
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const float weight = exp2f(s[h] - maxima[h]);
      weights[thread * kHeads + h] = weight;
      float total = weight;
#pragma unroll
      for (int offset = 16; offset > 0; offset /= 2) total += __shfl_xor_sync(~0u, total, offset);
      if (lane == 0) warp_stats[warp * kHeads + h] = total;
      out[h] *= keeps[h];
    }
    __syncthreads();
    if (thread < kHeads) {
      float total = sums[thread] * keeps[thread];
#pragma unroll
      for (int o = 0; o < kWarps; ++o) total += warp_stats[o * kHeads + thread];
      sums[thread] = total;
    }
    if (dim < size && part < groups) {
      const int count = min(kThreads, w.end - base);
#pragma unroll 8
      for (int j = part; j < count; j += groups) {
        const int position = base + j;
        const float x = to_f32(first_value[page_starts[position / kPagePositions - base_page] + position % kPagePositions * size]);
#pragma unroll
        for (int h = 0; h < kHeads; ++h) out[h] = fmaf(x, weights[j * kHeads + h], out[h]);
      }
    }
    __syncthreads();
  }
  if (dim < size && part < groups) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) group_out[(part * kHeads + h) * size + dim] = out[h];
  }
  __syncthreads();
  for (int i = thread; i < w.heads * size; i += kThreads) {
    float value = 0.0f;
    for (int g = 0; g < groups; ++g) value += group_out[g * kHeads * size + i];
    block_out[i] = value;
  }
  finish<0>(p, plan, w, {block_out, maxima, sums});
}

// out from the splits' results in the workspace, for rows with more than one. Grid: x query heads, y rows.
__global__ void __launch_bounds__(128) combine_splits(const __grid_constant__ int8_cuda_attention_params p, const __grid_constant__ DecodePlan plan) {
  pdl_trigger();
  if (!plan.appends) pdl_wait();
  const int row = static_cast<int>(blockIdx.y), head = static_cast<int>(blockIdx.x), size = p.cache.head_size;
  int chunk_tiles;
  const int active = active_splits(plan, span_of(p, p.batch.positions[row], p.batch.sequences[row]), &chunk_tiles);
  if (plan.appends) pdl_wait();  // even where there is nothing to combine: the next kernel waits for this one alone
  if (active == 1) return;
  const int64_t first = (static_cast<int64_t>(row) * p.heads + head) * plan.splits;
  float maximum = -INFINITY;
#pragma unroll 8
  for (int s = 0; s < active; ++s) maximum = fmaxf(maximum, plan.partial_sums[first + s].x);
  for (int d = threadIdx.x; d < size; d += 128) {
    float sum = 0.0f, out = 0.0f;
#pragma unroll 8
    for (int s = 0; s < active; ++s) {
      const float2 part = plan.partial_sums[first + s];
      const float weight = weight_of(part.x, maximum);
      sum += part.y * weight;
      out += plan.partial_out[(first + s) * size + d] * weight;
    }
    store_element(p.out, row * p.ldo + static_cast<int64_t>(head) * size + d, sum != 0.0f ? out / sum : 0.0f, p.out_element);
  }
}

template <typename Kernel>
int8_cuda_status launch_splits(Kernel kernel, size_t shared, size_t most_shared, const int8_cuda_attention_params &p, const DecodePlan &plan,
                               bool overlap) {
  const cudaStream_t stream = static_cast<cudaStream_t>(p.stream);
  const dim3 grid(static_cast<unsigned>(p.cache.kv_heads * plan.tiles), static_cast<unsigned>(p.batch.rows), static_cast<unsigned>(plan.splits));
  INT8_CUDA_TRY(allow_shared(kernel, most_shared));
  Launch launch(grid, dim3(kThreads), shared, stream, overlap);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, kernel, p, plan));
  if (plan.splits == 1) return INT8_CUDA_OK;
  Launch combine(dim3(static_cast<unsigned>(p.heads), static_cast<unsigned>(p.batch.rows)), dim3(128), 0, stream, overlap);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&combine.config, combine_splits, p, plan));
  return INT8_CUDA_OK;
}

template <typename T, int kSize>
int8_cuda_status launch_mma(const int8_cuda_attention_params &p, const DecodePlan &plan, bool overlap) {
  const int heads = std::min(kHeads, p.heads / p.cache.kv_heads);
  if (plan.appends) return launch_splits(decode_mma<T, kSize, true>, mma_shared_bytes(kSize, heads, true), mma_shared_bytes(kSize, kHeads, true), p, plan, overlap);
  return launch_splits(decode_mma<T, kSize, false>, mma_shared_bytes(kSize, heads, false), mma_shared_bytes(kSize, kHeads, false), p, plan, overlap);
}

template <typename T>
int8_cuda_status launch_typed(const int8_cuda_attention_params &p, const DecodePlan &plan, bool overlap) {
  const int size = p.cache.head_size;
  if constexpr (sizeof(T) == 2) {
    if (plan.tensor_core) {
      if (size <= 64) return launch_mma<T, 64>(p, plan, overlap);
      return size <= 128 ? launch_mma<T, 128>(p, plan, overlap) : launch_mma<T, 256>(p, plan, overlap);
    }
  }
  return launch_splits(decode_fma<T>, fma_shared_bytes(size), 0, p, plan, overlap);
}

}  // namespace

DecodePlan decode_plan(const int8_cuda_attention_params &p, const Device &device) {
  const auto aligned = [](const void *pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  DecodePlan plan{};
  plan.group = p.heads / p.cache.kv_heads;
  plan.tiles = ceil_div(plan.group, kHeads);
  plan.tensor_core = p.cache.element != INT8_CUDA_F32 && p.cache.head_size % 8 == 0 && aligned(p.cache.data);
  plan.cache_vectors = p.cache.head_size % 4 == 0 && aligned(p.cache.data);
  plan.query_vectors = p.ldq % 8 == 0 && aligned(p.q);
  plan.chunk_tiles = kWarps;
  const int64_t capacity = p.cache.sequence_pages * kPagePositions, units = p.batch.rows * p.cache.kv_heads * plan.tiles;
  const int64_t keys = p.mask == INT8_CUDA_CAUSAL && p.window > 0 ? std::min(capacity, p.window) : capacity;
  // Two blocks an SM, and no block of a second wave.
  const int64_t splits = keys <= kSingleTiles * kTilePositions ? 1 : std::min<int64_t>(2 * device.multiprocessors / units, ceil_div<int64_t>(keys, plan.chunk_tiles * kTilePositions));
  plan.splits = static_cast<int>(std::max<int64_t>(splits, 1));
  return plan;
}

uint64_t decode_workspace(const int8_cuda_attention_params &p, const Device &device) {
  // splits * rows * kv_heads * tiles <= 2 * multiprocessors for every number of rows; a part takes group * (head_size + 2) numbers
  // of the tiles of its kv head. One split has no parts.
  const uint64_t parts = static_cast<uint64_t>(2 * device.multiprocessors) * std::min(p.heads / p.cache.kv_heads, kHeads);
  return round_up<uint64_t>(parts * static_cast<uint64_t>(p.cache.head_size + 2) * sizeof(float), 256);
}

namespace {

int8_cuda_status launch_plan(const int8_cuda_attention_params &p, DecodePlan plan, const Device &device) {
  plan.partial_sums = static_cast<float2 *>(p.workspace);
  plan.partial_out = reinterpret_cast<float *>(plan.partial_sums + p.batch.rows * p.heads * plan.splits);
  const bool overlap = device.major >= 9;
  switch (p.cache.element) {
    case INT8_CUDA_F16: return launch_typed<__half>(p, plan, overlap);
    case INT8_CUDA_BF16: return launch_typed<__nv_bfloat16>(p, plan, overlap);
    default: return launch_typed<float>(p, plan, overlap);
  }
}

}  // namespace

int8_cuda_status launch_decode(const int8_cuda_attention_params &p, const Device &device) { return launch_plan(p, decode_plan(p, device), device); }

bool decode_appends(const int8_cuda_append_kv_params &append, const int8_cuda_attention_params &p, const Device &device) {
  const auto aligned = [](const void *pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  if (p.batch.rows != p.batch.segments || p.batch.rows > 65535 || p.mask != INT8_CUDA_CAUSAL) return false;
  if (append.heads == 0 || append.element != p.cache.element) return false;
  const bool rotation = append.cos == nullptr || (append.half % 8 == 0 && aligned(append.cos) && aligned(append.sin));
  const DecodePlan plan = decode_plan(p, device);
  return rotation && plan.tensor_core && plan.query_vectors;
}

int8_cuda_status launch_append_and_attend(const int8_cuda_append_kv_params &append, const int8_cuda_attention_params &p, const Device &device) {
  DecodePlan plan = decode_plan(p, device);
  plan.appends = 1;
  plan.half = append.cos != nullptr ? append.half : 0;
  plan.cos = append.cos;
  plan.sin = append.sin;
  // A third of an H100's L2: neither weights nor tiles of other blocks are evicted.
  constexpr int64_t kEarlyBytes = 16 << 20;
  const int64_t units = std::min<int64_t>(p.batch.rows * p.cache.kv_heads * plan.tiles, 2 * device.multiprocessors);
  const int64_t tile_bytes = int64_t{2} * kTilePositions * p.cache.head_size * 2;
  plan.early_tiles = static_cast<int>(kEarlyBytes / (units * kWarps * tile_bytes));
  int8_cuda_attention_params both = p;
  both.cache = append.cache;  // has `overflow`
  return launch_plan(both, plan, device);
}

}  // namespace int8_cuda
