// Attention of any kind: head sizes up to 256, every element type, mask and bias. Online softmax over tiles of 32 keys, f32 FMA.
//
// A block has 32 rows of one segment and one query head; a warp has 4 of the rows. For the scores a lane has a key, for the
// sum over the values a lane has the dims lane + 32 i.
#include "attention/attention.cuh"

namespace int8_cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kWarpRows = 4;
constexpr int kRows = kWarps * kWarpRows;
constexpr int kKeys = 32;

// Elements of a row of shared memory: 16-byte aligned and an odd number of 16 bytes, so that lanes reading float4 of
// consecutive rows meet different banks.
__host__ __device__ constexpr int stride_of(int size) { return (ceil_div(size, 4) | 1) * 4; }
// Queries, keys and values: 97 KB for head size 256, two thirds of an sm_80's shared memory.
constexpr size_t shared_bytes(int size) { return sizeof(float) * (kRows + 2 * kKeys) * stride_of(size); }

// kDims: dims of a lane, head size / 32 rounded up to 2, 4 or 8. Grid: x row tiles, y query heads.
template <int kDims>
__global__ void __launch_bounds__(kThreads) generic_attention(const __grid_constant__ int8_cuda_attention_params p) {
  extern __shared__ __align__(16) float shared[];
  pdl_trigger();
  pdl_wait();
  const RowTile tile = row_tile(p.batch, kRows, static_cast<int>(blockIdx.x));
  const int rows = tile.end - tile.first;
  if (rows <= 0) return;
  const int head = static_cast<int>(blockIdx.y), kv_head = head / (p.heads / p.cache.kv_heads);
  const int size = p.cache.head_size, padded = round_up(size, 4), stride = stride_of(size);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float *queries = shared, *keys = queries + kRows * stride, *values = keys + kKeys * stride;

  for (int i = threadIdx.x; i < kRows * padded; i += kThreads) {
    const int r = i / padded, d = i % padded;
    const bool inside = r < rows && d < size;
    queries[r * stride + d] = inside ? p.scale * load_element(p.q, (tile.first + r) * p.ldq + static_cast<int64_t>(head) * size + d, p.q_element) : 0.0f;
  }
  // The warp's rows; rows beyond the tile have no keys. All rows of the tile lie between the first's and the last's keys.
  Span span[kWarpRows];
  int position[kWarpRows];
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    const int row = warp * kWarpRows + r;
    position[r] = row < rows ? p.batch.positions[tile.first + row] : 0;
    span[r] = row < rows ? span_of(p, position[r], tile.sequence) : Span{0, 0};
  }
  const int first = span_of(p, p.batch.positions[tile.first], tile.sequence).first / kKeys * kKeys;
  const int end = span_of(p, p.batch.positions[tile.end - 1], tile.sequence).end;
  const int32_t *pages = p.cache.page_table + tile.sequence * p.cache.sequence_pages;
  const int64_t behind = value_elements(p.cache);

  float maximum[kWarpRows], sum[kWarpRows], out[kWarpRows][kDims];
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    maximum[r] = -INFINITY;
    sum[r] = 0.0f;
#pragma unroll
    for (int i = 0; i < kDims; ++i) out[r][i] = 0.0f;
  }
  for (int base = first; base < end; base += kKeys) {
    __syncthreads();
    // kKeys divides a page.
    const int64_t page = page_index(p.cache, p.layer, pages[base / kPagePositions], kv_head) + static_cast<int64_t>(base % kPagePositions) * size;
    for (int i = threadIdx.x; i < kKeys * padded; i += kThreads) {
      const int j = i / padded, d = i % padded;
      const bool inside = base + j < end && d < size;
      keys[j * stride + d] = inside ? load_element(p.cache.data, page + j * size + d, p.cache.element) : 0.0f;
      values[j * stride + d] = inside ? load_element(p.cache.data, page + behind + j * size + d, p.cache.element) : 0.0f;
    }
    __syncthreads();
    float s[kWarpRows] = {};
    for (int d = 0; d < padded; d += 4) {
      const float4 k = *reinterpret_cast<const float4 *>(keys + lane * stride + d);
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) {
        const float4 q = *reinterpret_cast<const float4 *>(queries + (warp * kWarpRows + r) * stride + d);
        s[r] = fmaf(q.x, k.x, fmaf(q.y, k.y, fmaf(q.z, k.z, fmaf(q.w, k.w, s[r]))));
      }
    }
    const int key = base + lane;
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const bool inside = key >= span[r].first && key < span[r].end;
      s[r] = inside ? score_log2<true>(p, s[r], head, position[r], key) : -INFINITY;
      float next = s[r];
#pragma unroll
      for (int offset = 16; offset > 0; offset /= 2) next = fmaxf(next, __shfl_xor_sync(~0u, next, offset));
      next = fmaxf(next, maximum[r]);
      const float keep = maximum[r] == -INFINITY ? 0.0f : exp2f(maximum[r] - next);
      maximum[r] = next;
      s[r] = inside ? exp2f(s[r] - next) : 0.0f;
      sum[r] = sum[r] * keep + s[r];
#pragma unroll
      for (int i = 0; i < kDims; ++i) out[r][i] *= keep;
    }
#pragma unroll 4
    for (int j = 0; j < kKeys; ++j) {
      float weight[kWarpRows];
#pragma unroll
      for (int r = 0; r < kWarpRows; ++r) weight[r] = __shfl_sync(~0u, s[r], j);
#pragma unroll
      for (int i = 0; i < kDims; ++i) {
        // Dims beyond the head size repeat the last one; they are not stored.
        const float v = values[j * stride + min(lane + 32 * i, size - 1)];
#pragma unroll
        for (int r = 0; r < kWarpRows; ++r) out[r][i] = fmaf(weight[r], v, out[r][i]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kWarpRows; ++r) {
    const int row = warp * kWarpRows + r;
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) sum[r] += __shfl_xor_sync(~0u, sum[r], offset);
    if (row >= rows) continue;
    const int64_t to = (tile.first + row) * p.ldo + static_cast<int64_t>(head) * size;
#pragma unroll
    for (int i = 0; i < kDims; ++i) {
      const int d = lane + 32 * i;
      if (d < size) store_element(p.out, to + d, sum[r] != 0.0f ? out[r][i] / sum[r] : 0.0f, p.out_element);
    }
  }
}

template <int kDims>
int8_cuda_status launch(const int8_cuda_attention_params &p, bool overlap) {
  const int64_t tiles = p.batch.rows / kRows + p.batch.segments;
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(p.heads));
  INT8_CUDA_TRY(allow_shared(generic_attention<kDims>, shared_bytes(kDims * 32)));
  Launch launch(grid, dim3(kThreads), shared_bytes(p.cache.head_size), static_cast<cudaStream_t>(p.stream), overlap);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, generic_attention<kDims>, p));
  return INT8_CUDA_OK;
}

}  // namespace

int8_cuda_status launch_generic_attention(const int8_cuda_attention_params &p, const Device &device) {
  const bool overlap = device.major >= 9;
  if (p.cache.head_size <= 64) return launch<2>(p, overlap);
  return p.cache.head_size <= 128 ? launch<4>(p, overlap) : launch<8>(p, overlap);
}

}  // namespace int8_cuda
