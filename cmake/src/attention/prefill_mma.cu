// Attention of many query rows: FlashAttention-2's loop with mma.sync, over the pages of the cache.
//
// A block has kM * 64 rows of one segment and one query head; each of its four warps has kM tiles of 16 rows. A page of keys
// and a page of values are in shared memory at a time: the next keys are loaded while the values are multiplied, the next
// values while the keys are.
#include <type_traits>

#include "attention/attention.cuh"
#include "common/tma.cuh"
#include "gemm/mma_sync.cuh"

namespace int8_cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kKeys = kPagePositions;

// Tiles of 16 rows a warp: 2 halve the reads of K and V from shared memory; for head size 256 the accumulators of one fill
// the registers.
constexpr int warp_tiles(int size) { return size <= 128 ? 2 : 1; }
// Queries, keys and values; two blocks an SM up to head size 128 (64 KB).
constexpr size_t shared_bytes(int size) { return static_cast<size_t>(kWarps * 16 * warp_tiles(size) + 2 * kKeys) * size * 2; }

// Byte offset of the 16-byte chunk `chunk` of a row: chunks are swizzled, so that the 8 rows an ldmatrix reads differ in banks.
template <int kSize>
__device__ __forceinline__ uint32_t chunk_offset(int row, int chunk) {
  return static_cast<uint32_t>((row * (kSize / 8) + (chunk ^ (row & 7))) * 16);
}

// kSize: head size rounded up to 64, 128 or 256. Grid: x query heads, y row tiles, the last (and longest) first.
template <typename T, int kSize, int kM>
__global__ void __launch_bounds__(kThreads, kSize <= 128 ? 2 : 1) prefill_mma(const __grid_constant__ int8_cuda_attention_params p, int vectors) {
  extern __shared__ __align__(128) uint8_t shared[];
  constexpr int kRows = kWarps * kM * 16;
  const uint32_t queries = shared_address(shared), keys = queries + kRows * kSize * 2, values = keys + kKeys * kSize * 2;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, part = lane % 4;
  pdl_trigger();
  pdl_wait();
  const RowTile tile = row_tile(p.batch, kRows, static_cast<int>(gridDim.y - 1 - blockIdx.y));
  const int rows = tile.end - tile.first;
  if (rows <= 0) return;
  const int head = static_cast<int>(blockIdx.x), kv_head = head / (p.heads / p.cache.kv_heads), size = p.cache.head_size;

  const T *data = static_cast<const T *>(p.cache.data);
  const int64_t behind = value_elements(p.cache);
  const int32_t *pages = p.cache.page_table + tile.sequence * p.cache.sequence_pages;
  // The positions of a segment's rows are consecutive.
  const int position = p.batch.positions[tile.first];
  const Span first_span = span_of(p, position, tile.sequence), last_span = span_of(p, position + rows - 1, tile.sequence);
  const int first_page = first_span.first / kKeys, end_page = ceil_div(last_span.end, kKeys);

  auto load_page = [&](uint32_t to, int page, int64_t offset) {
    const T *from = data + page_index(p.cache, p.layer, pages[page], kv_head) + offset;
#pragma unroll 4
    for (int i = threadIdx.x; i < kKeys * kSize / 8; i += kThreads) {
      const int key = i / (kSize / 8), chunk = i % (kSize / 8);
      // Beyond the last key memory may hold NaN, which a weight of 0 does not hide.
      const bool inside = chunk * 8 < size && page * kKeys + key < last_span.end;
      copy_async_16(to + chunk_offset<kSize>(key, chunk), from + (inside ? key * size + chunk * 8 : 0), inside);
    }
  };
  // Queries of another type are scaled before they are rounded, so that an f32 query stays in f16's range.
  const bool same = p.q_element == (std::is_same_v<T, __half> ? INT8_CUDA_F16 : INT8_CUDA_BF16);
  const int64_t q_from = tile.first * p.ldq + static_cast<int64_t>(head) * size;
  if (same && vectors) {
    const T *from = static_cast<const T *>(p.q) + q_from;
    for (int i = threadIdx.x; i < kRows * kSize / 8; i += kThreads) {
      const int row = i / (kSize / 8), chunk = i % (kSize / 8);
      const bool inside = chunk * 8 < size && row < rows;
      copy_async_16(queries + chunk_offset<kSize>(row, chunk), from + (inside ? row * p.ldq + chunk * 8 : 0), inside);
    }
  } else {
    const float factor = same ? 1.0f : p.scale;
    for (int i = threadIdx.x; i < kRows * kSize; i += kThreads) {
      const int row = i / kSize, d = i % kSize;
      const float value = row < rows && d < size ? factor * load_element(p.q, q_from + row * p.ldq + d, p.q_element) : 0.0f;
      *reinterpret_cast<T *>(shared + chunk_offset<kSize>(row, d / 8) + d % 8 * 2) = from_f32<T>(value);
    }
  }
  const float scale = same ? p.scale : 1.0f;
  const bool plain = p.softcap <= 0.0f && p.slopes == nullptr && p.distance_bias == nullptr;

  float out[kM][kSize / 8][4] = {};  // [dims 8 j + 2 part ..]: rows group (0, 1) and group + 8 (2, 3)
  float maximum[kM][2], sum[kM][2];
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      maximum[m][r] = -INFINITY;
      sum[m][r] = 0.0f;
    }
  }
  const int first_row = warp * kM * 16;  // of the warp within the tile
  if (first_page < end_page) load_page(keys, first_page, 0);
  copy_async_commit();
  if (first_page < end_page) load_page(values, first_page, behind);
  copy_async_commit();

  for (int page = first_page; page < end_page; ++page) {
    copy_async_wait<1>();
    __syncthreads();
    float s[kM][kKeys / 8][4] = {};
#pragma unroll
    for (int k = 0; k < kSize / 16; ++k) {
      uint32_t a[kM][4];
#pragma unroll
      for (int m = 0; m < kM; ++m) ldmatrix_x4(a[m], queries + chunk_offset<kSize>(first_row + m * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
      for (int j = 0; j < kKeys / 16; ++j) {
        uint32_t b[4];
        ldmatrix_x4(b, keys + chunk_offset<kSize>(j * 16 + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          mma_16bit(s[m][2 * j], a[m], b[0], b[1], T{});
          mma_16bit(s[m][2 * j + 1], a[m], b[2], b[3], T{});
        }
      }
    }
    __syncthreads();
    if (page + 1 < end_page) load_page(keys, page + 1, 0);
    copy_async_commit();

    // All rows have all keys of this page: spans are monotonic in the row.
    const bool whole = page * kKeys >= last_span.first && (page + 1) * kKeys <= first_span.end;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      auto each = [&](auto function) {
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
          for (int i = 0; i < 4; ++i) s[m][j][i] = function(s[m][j][i], group + i / 2 * 8, j * 8 + part * 2 + i % 2);
        }
      };
      // score_log2, its conditions outside of the loops. Rows count from `from`, keys from the page's first.
      const int from = position + first_row + m * 16;
      if (plain) {
        const float factor = scale * kLog2E;
        each([=](float value, int, int) { return value * factor; });
      } else {
        if (p.softcap > 0.0f) {
          const float factor = scale / p.softcap;
          each([&](float value, int, int) { return p.softcap * tanh_approx(value * factor); });
        } else {
          each([=](float value, int, int) { return value * scale; });
        }
        if (p.slopes != nullptr) {
          const float slope = p.slopes[head];
          const int distance = from - page * kKeys;
          each([=](float value, int row, int key) { return (value - slope * static_cast<float>(distance + row - key)) * kLog2E; });
        } else if (p.distance_bias != nullptr) {
          const int reach = static_cast<int>(p.reach), distance = page * kKeys - from;
          const float *bias = p.distance_bias + head * (2 * p.reach + 1) + reach;
          each([=](float value, int row, int key) { return (value + bias[min(max(distance + key - row, -reach), reach)]) * kLog2E; });
        } else {
          each([](float value, int, int) { return value * kLog2E; });
        }
      }
      if (!whole) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const Span span = span_of(p, position + first_row + m * 16 + group + r * 8, tile.sequence);
#pragma unroll
          for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const int key = page * kKeys + j * 8 + part * 2 + i;
              if (key < span.first || key >= min(span.end, last_span.end)) s[m][j][r * 2 + i] = -INFINITY;
            }
          }
        }
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float next = maximum[m][r];
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) next = fmaxf(next, fmaxf(s[m][j][r * 2], s[m][j][r * 2 + 1]));
        next = fmaxf(next, __shfl_xor_sync(~0u, next, 1));
        next = fmaxf(next, __shfl_xor_sync(~0u, next, 2));
        const float finite = next == -INFINITY ? 0.0f : next;  // a row without keys so far
        const float keep = exp2_approx(maximum[m][r] - finite);
        maximum[m][r] = next;
        float total = 0.0f;
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            s[m][j][r * 2 + i] = exp2_approx(s[m][j][r * 2 + i] - finite);
            total += s[m][j][r * 2 + i];
          }
        }
        sum[m][r] = sum[m][r] * keep + total;
#pragma unroll
        for (int j = 0; j < kSize / 8; ++j) {
          out[m][j][r * 2] *= keep;
          out[m][j][r * 2 + 1] *= keep;
        }
      }
    }
    copy_async_wait<1>();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      uint32_t a[kM][4];
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[m][i] = pack2<T>(s[m][2 * k + i / 2][i % 2 * 2], s[m][2 * k + i / 2][i % 2 * 2 + 1]);
      }
#pragma unroll
      for (int j = 0; j < kSize / 16; ++j) {
        uint32_t b[4];
        ldmatrix_x4_transposed(b, values + chunk_offset<kSize>(k * 16 + lane / 8 % 2 * 8 + lane % 8, j * 2 + lane / 16));
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          mma_16bit(out[m][2 * j], a[m], b[0], b[1], T{});
          mma_16bit(out[m][2 * j + 1], a[m], b[2], b[3], T{});
        }
      }
    }
    __syncthreads();
    if (page + 1 < end_page) load_page(values, page + 1, behind);
    copy_async_commit();
  }
  copy_async_wait<0>();

#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[m][r] += __shfl_xor_sync(~0u, sum[m][r], 1);
      sum[m][r] += __shfl_xor_sync(~0u, sum[m][r], 2);
      const int row = first_row + m * 16 + group + r * 8;
      if (row >= rows) continue;
      const float inverse = sum[m][r] != 0.0f ? 1.0f / sum[m][r] : 0.0f;
      const int64_t to = (tile.first + row) * p.ldo + static_cast<int64_t>(head) * size;
#pragma unroll
      for (int j = 0; j < kSize / 8; ++j) {
        const int d = j * 8 + part * 2;
        if (d >= size) continue;
        const float low = out[m][j][r * 2] * inverse, high = out[m][j][r * 2 + 1] * inverse;
        if (vectors && p.out_element != INT8_CUDA_F32) {
          const uint32_t pair = p.out_element == INT8_CUDA_F16 ? pack2<__half>(low, high) : pack2<__nv_bfloat16>(low, high);
          *reinterpret_cast<uint32_t *>(static_cast<uint16_t *>(p.out) + to + d) = pair;
        } else {
          store_element(p.out, to + d, low, p.out_element);
          store_element(p.out, to + d + 1, high, p.out_element);
        }
      }
    }
  }
}

template <typename T, int kSize>
int8_cuda_status launch_size(const int8_cuda_attention_params &p, bool overlap) {
  constexpr int kM = warp_tiles(kSize), kRows = kWarps * kM * 16;
  const auto aligned = [](const void *pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; };
  const int vectors = aligned(p.q, 16) && p.ldq % 8 == 0 && aligned(p.out, 4) && p.ldo % 2 == 0;
  const dim3 grid(static_cast<unsigned>(p.heads), static_cast<unsigned>(p.batch.rows / kRows + p.batch.segments));
  INT8_CUDA_TRY(allow_shared(prefill_mma<T, kSize, kM>, shared_bytes(kSize)));
  Launch launch(grid, dim3(kThreads), shared_bytes(kSize), static_cast<cudaStream_t>(p.stream), overlap);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, prefill_mma<T, kSize, kM>, p, vectors));
  return INT8_CUDA_OK;
}

template <typename T>
int8_cuda_status launch_typed(const int8_cuda_attention_params &p, bool overlap) {
  if (p.cache.head_size <= 64) return launch_size<T, 64>(p, overlap);
  return p.cache.head_size <= 128 ? launch_size<T, 128>(p, overlap) : launch_size<T, 256>(p, overlap);
}

}  // namespace

bool prefill_mma_serves(const int8_cuda_attention_params &p) {
  // Row tiles are the grid's y.
  return p.cache.element != INT8_CUDA_F32 && p.cache.head_size % 8 == 0 && reinterpret_cast<uintptr_t>(p.cache.data) % 16 == 0 &&
         p.batch.rows / 64 + p.batch.segments <= 65535;
}

int8_cuda_status launch_prefill_mma(const int8_cuda_attention_params &p, const Device &device) {
  const bool overlap = device.major >= 9;
  return p.cache.element == INT8_CUDA_F16 ? launch_typed<__half>(p, overlap) : launch_typed<__nv_bfloat16>(p, overlap);
}

}  // namespace int8_cuda
