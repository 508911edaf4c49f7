// The layer for few rows (M <= 32): bound by the bytes of W, so every weight byte is read once, straight into the registers
// that mma.sync takes, and never touches shared memory.
//
// The dot product does not care about the order of k, so a thread loads 16 consecutive bytes of a row of W and the same 16
// of a row of x and hands them to two products as if they were the scattered k that the instruction names.
#include "codes.cuh"
#include "gemm.cuh"
#include "mma.cuh"

namespace int8_cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
// Bytes of K that a warp takes at a time: four threads a row, 16 bytes each.
constexpr int kWindow = 64;
// Bytes of W that all blocks together ask L2 for before their predecessor has ended: about half of the 50 MB cache.
constexpr int64_t kEarlyBytes = 24 << 20;

__device__ __forceinline__ uint4 load_streamed(const void *from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

__device__ __forceinline__ void prefetch_bytes_to_l2(const void *from, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#endif
}

// kRows: tiles of 16 rows of W a block handles. kTiles: tiles of 8 rows of x. The eight warps share out K.
template <typename T, int kRows, int kTiles>
__global__ void __launch_bounds__(kThreads, kRows * kTiles == 1 ? 3 : kTiles == 4 ? 1 : 2) skinny_layer(const __grid_constant__ GemmParams p, int early_bytes) {
  constexpr int kN = kRows * 16, kM = kTiles * 8, kOutputs = kN * kM;
  // Windows in flight a warp: 8 loads of W, with two blocks an SM 64 KB, what hides the latency of memory.
  constexpr int kUnroll = 4 / kRows;
  __shared__ int32_t partial[kWarps][kOutputs];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, part = lane % 4;
  const int first_n = blockIdx.x * kN;
  const int inner = round_up(p.k, 16), windows = ceil_div(inner, kWindow);

  if (early_bytes > 0 && threadIdx.x < kN && first_n + static_cast<int>(threadIdx.x) < p.n) {
    prefetch_bytes_to_l2(p.w + (first_n + static_cast<int64_t>(threadIdx.x)) * p.ldw, min(early_bytes, inner));
  }
  let_successor_start();
  wait_for_predecessor();

  // Rows beyond n read row n - 1; their results are not stored.
  const int8_t *w[kRows][2];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      w[r][h] = p.w + static_cast<int64_t>(min(first_n + r * 16 + h * 8 + group, p.n - 1)) * p.ldw + part * 16;
    }
  }
  const int8_t *x[kTiles];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) x[t] = p.a + static_cast<int64_t>(min(t * 8 + group, p.m - 1)) * p.lda + part * 16;

  uint4 wv[kUnroll][kRows][2], xv[kUnroll][kTiles];
  auto load = [&](int base) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int offset = (base + u * kWarps) * kWindow;
      const bool inside = offset + part * 16 < inner;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int h = 0; h < 2; ++h) wv[u][r][h] = inside ? load_streamed(w[r][h] + offset) : make_uint4(0, 0, 0, 0);
      }
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        xv[u][t] = inside ? *reinterpret_cast<const uint4 *>(x[t] + offset) : make_uint4(0, 0, 0, 0);
      }
    }
  };
  // Asked for before the weights and used after: how many outlier columns there are, and this warp's first (if it has one).
  const bool decompose = p.outlier_count != nullptr;
  const uint32_t outliers = decompose ? *p.outlier_count : 0;
  int next_column = decompose && warp < p.k ? p.outlier_columns[warp] : 0;
  load(warp);

  // The outliers' latency hides behind the first weights'. The warps share out the columns; half a warp takes the 16 rows
  // of W, the halves take alternate rows of x.
  float outlier_sums[kRows][kM / 2] = {};
  const T *outlier_x = static_cast<const T *>(p.outlier_x);
  for (uint32_t j = warp; j < outliers; j += kWarps) {
    const int k = next_column;
    if (j + kWarps < outliers) next_column = p.outlier_columns[j + kWarps];
    float weight[kRows], v[kM / 2];
#pragma unroll
    for (int i = 0; i < kM / 2; ++i) {
      const int m = 2 * i + lane / 16;
      v[i] = m < p.m ? to_f32(outlier_x[outlier_index(p.m, m, j)]) : 0.0f;
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) weight[r] = outlier_weight<T>(p.weight, min(first_n + r * 16 + lane % 16, p.n - 1), k);
#pragma unroll
    for (int i = 0; i < kM / 2; ++i) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) outlier_sums[r][i] = fmaf(v[i], weight[r], outlier_sums[r][i]);
    }
  }

  int32_t acc[kRows][kTiles][4] = {};
  for (int base = warp; base < windows; base += kWarps * kUnroll) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const uint4 low = wv[u][r][0], high = wv[u][r][1];
        const uint32_t first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          mma_s8(acc[r][t], first, xv[u][t].x, xv[u][t].y);
          mma_s8(acc[r][t], second, xv[u][t].z, xv[u][t].w);
        }
      }
    }
    load(base + kWarps * kUnroll);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int n = r * 16 + group + i / 2 * 8, m = t * 8 + part * 2 + i % 2;
        partial[warp][m * kN + n] = acc[r][t][i];
      }
    }
  }
  __syncthreads();

  // Each thread finishes the outputs threadIdx.x + i*kThreads: neighbours in n, so that stores are coalesced.
  constexpr int kEach = ceil_div(kOutputs, kThreads);
  float result[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int output = threadIdx.x + i * kThreads, m = output / kN, n = first_n + output % kN;
    result[i] = 0.0f;
    if (output >= kOutputs || m >= p.m || n >= p.n) continue;
    int32_t sum = 0;
#pragma unroll
    for (int s = 0; s < kWarps; ++s) sum += partial[s][output];
    float value = static_cast<float>(sum);
    if (p.row_zeros != nullptr || p.column_zeros != nullptr) {
      value = corrected(sum, p.row_zeros != nullptr ? p.row_zeros[m] : 0, p.column_zeros != nullptr ? p.row_sums[m] : 0,
                        p.column_zeros != nullptr ? p.column_zeros[n] : 0, p.row_zeros != nullptr ? p.column_sums[n] : 0, p.k);
    }
    result[i] = value * (p.row_scales[m] * (1.0f / 127.0f)) * (p.column_scales[n] * (1.0f / 127.0f));
  }

  if (outliers > 0) {
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int i = 0; i < kM / 2; ++i) {
        partial[warp][(2 * i + lane / 16) * kN + r * 16 + lane % 16] = __float_as_int(outlier_sums[r][i]);
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int output = threadIdx.x + i * kThreads;
      if (output >= kOutputs) continue;
      float sum = 0.0f;
#pragma unroll
      for (int s = 0; s < kWarps; ++s) sum += __int_as_float(partial[s][output]);
      result[i] += sum;
    }
  }
  T *y = static_cast<T *>(p.y);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int output = threadIdx.x + i * kThreads, m = output / kN, n = first_n + output % kN;
    if (output >= kOutputs || m >= p.m || n >= p.n) continue;
    y[m * p.ldy + n] = from_f32<T>(result[i] + (p.bias != nullptr ? p.bias[n] : 0.0f));
  }
}

// One row of x, 16-bit and aligned: every block quantises it for itself while its first weights are on their way, which costs
// less than waiting for another kernel. Codes and the outlier mask live in shared memory.
template <typename T>
__global__ void __launch_bounds__(kThreads, 3) skinny_one(const __grid_constant__ GemmParams p, int zero_point, int early_bytes) {
  extern __shared__ __align__(16) uint8_t codes[];
  __shared__ int32_t partial[kWarps][16];
  __shared__ float outlier_partial[kWarps][16];
  __shared__ uint32_t scratch[kWarps];
  __shared__ float scratch_f32[kWarps];
  __shared__ int32_t scratch_i32[kWarps];
  constexpr int kUnroll = 4;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, part = lane % 4;
  const int first_n = blockIdx.x * 16;
  const int inner = round_up(p.k, 16), windows = ceil_div(inner, kWindow), chunks = inner / kChunk;
  uint32_t *mask = reinterpret_cast<uint32_t *>(codes + round_up(inner, kWindow));
  const int words = ceil_div(p.k, 32);
  const bool decompose = p.outlier_columns != nullptr;

  if (early_bytes > 0 && threadIdx.x < 16 && first_n + static_cast<int>(threadIdx.x) < p.n) {
    prefetch_bytes_to_l2(p.w + (first_n + static_cast<int64_t>(threadIdx.x)) * p.ldw, min(early_bytes, inner));
  }
  let_successor_start();
  wait_for_predecessor();

  const int8_t *w[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) w[h] = p.w + static_cast<int64_t>(min(first_n + h * 8 + group, p.n - 1)) * p.ldw + part * 16;
  uint4 wv[kUnroll][2];
  auto load = [&](int base) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int offset = (base + u * kWarps) * kWindow;
      const bool inside = offset + part * 16 < inner;
#pragma unroll
      for (int h = 0; h < 2; ++h) wv[u][h] = inside ? load_streamed(w[h] + offset) : make_uint4(0, 0, 0, 0);
    }
  };
  load(warp);

  const T *x = static_cast<const T *>(p.x);
  const float threshold = !decompose ? infinity() : p.thresholds != nullptr ? p.thresholds[0] : p.threshold;
  const uint32_t floor = Packed<T>::at_least(threshold);
  if (decompose) {
    // Bytes beyond the last chunk belong to the last word.
    for (int i = chunks + static_cast<int>(threadIdx.x); i < words * 4; i += kThreads) reinterpret_cast<uint8_t *>(mask)[i] = 0;
  }
  // Asked for now, used at the end.
  const int n = first_n + static_cast<int>(threadIdx.x);
  const bool finishes = threadIdx.x < 16 && n < p.n;
  const float column_scale = finishes ? p.column_scales[n] : 0.0f, bias = finishes && p.bias != nullptr ? p.bias[n] : 0.0f;
  PackedRange<T> packed;
  uint32_t met = 0;
#pragma unroll 2
  for (int chunk = threadIdx.x; chunk < chunks; chunk += kThreads) {
    T v[kChunk];
    load_chunk<T, true>(x, static_cast<int64_t>(chunk) * kChunk, p.k, v);
    const uint32_t skip = decompose ? hits_of<T, true>(v, threshold, floor) : 0u;
    met |= skip;
    if (decompose && chunk < words * 4) reinterpret_cast<uint8_t *>(mask)[chunk] = static_cast<uint8_t>(skip);
#pragma unroll
    for (int i = 0; i < kChunk / 2; ++i) {
      uint32_t word = words_of(v)[i];
      if (skip != 0) word &= (skip >> (2 * i) & 1u ? 0u : 0xffffu) | (skip >> (2 * i) & 2u ? 0u : 0xffff0000u);
      packed.add(word, zero_point != 0);
    }
  }
  RangeOfRow range;
  const uint32_t most = block_reduce<kThreads>(larger_half(packed.most), [](uint32_t a, uint32_t b) { return max(a, b); }, scratch);
  range.infinite = most >= Packed<T>::kInfinity;
  range.high = Packed<T>::unpack(most).x;
  if (zero_point) {
    const float2 low = Packed<T>::unpack(packed.low), high = Packed<T>::unpack(packed.high);
    range.low = block_reduce<kThreads>(fminf(low.x, low.y), [](float a, float b) { return fminf(a, b); }, scratch_f32);
    range.high = block_reduce<kThreads>(fmaxf(high.x, high.y), [](float a, float b) { return fmaxf(a, b); }, scratch_f32);
  }
  const Constants constants(range, zero_point ? INT8_CUDA_ZEROPOINT : INT8_CUDA_ABSMAX);
  int32_t sum = 0;
#pragma unroll 2
  for (int chunk = threadIdx.x; chunk < chunks; chunk += kThreads) {
    T v[kChunk];
    load_chunk<T, true>(x, static_cast<int64_t>(chunk) * kChunk, p.k, v);
    uint32_t q[2];
    const uint32_t out = decompose && chunk < words * 4 ? reinterpret_cast<const uint8_t *>(mask)[chunk] : 0u;
    encode_chunk<T, true>(v, constants, zero_point != 0, out, p.k - static_cast<int64_t>(chunk) * kChunk, q);
    sum = __dp4a(static_cast<int>(q[0]), 0x01010101, __dp4a(static_cast<int>(q[1]), 0x01010101, sum));
    *reinterpret_cast<uint2 *>(codes + chunk * kChunk) = make_uint2(q[0], q[1]);
  }
  if (p.column_zeros != nullptr) sum = block_reduce<kThreads>(sum, [](int32_t a, int32_t b) { return a + b; }, scratch_i32);
  const int busy = __syncthreads_count(met != 0);

  // Half a warp takes the 16 rows of W for one outlier column.
  float outlier_sum = 0.0f;
  if (busy > 0 && busy <= kThreads / 16) {
    // Few: the warps walk the mask, each its own words.
    for (int base = warp * 32; base < words; base += kThreads) {
      const uint32_t own = base + lane < words ? mask[base + lane] : 0u;
      for (uint32_t pending = __ballot_sync(0xffffffffu, own != 0); pending != 0; pending &= pending - 1) {
        const int from = __ffs(pending) - 1;
        for (uint32_t bits = __shfl_sync(0xffffffffu, own, from); bits != 0; bits &= bits - 1) {
          const int k = (base + from) * 32 + __ffs(bits) - 1;
          outlier_sum = fmaf(to_f32(x[k]), outlier_weight<T>(p.weight, min(first_n + lane % 16, p.n - 1), k), outlier_sum);
        }
      }
    }
  } else if (busy > 0) {
    // Many: they are listed first, and four columns' loads are in flight at a time.
    Columns<kThreads> columns{mask, mask + words, reinterpret_cast<int32_t *>(mask + 2 * words), 0};
    columns.scan(words, scratch);
    const int row = min(first_n + lane % 16, p.n - 1), first_j = threadIdx.x / 16;
    for (uint32_t first = 0; first < columns.count; first += kListed) {
      const uint32_t listed = columns.make_list(words, first);
#pragma unroll 4
      for (uint32_t j = first_j; j < listed; j += kThreads / 16) {
        const int k = columns.list[j];
        outlier_sum = fmaf(to_f32(x[k]), outlier_weight<T>(p.weight, row, k), outlier_sum);
      }
    }
    outlier_sum += __shfl_xor_sync(0xffffffffu, outlier_sum, 16);
  }

  int32_t acc[4] = {};
  for (int base = warp; base < windows; base += kWarps * kUnroll) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int offset = (base + u * kWarps) * kWindow + part * 16;
      // Column 0 of the eight is the row of x; the others are 0.
      const uint4 xv = group == 0 && offset < inner ? *reinterpret_cast<const uint4 *>(codes + offset) : make_uint4(0, 0, 0, 0);
      const uint4 low = wv[u][0], high = wv[u][1];
      const uint32_t first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
      mma_s8(acc, first, xv.x, xv.y);
      mma_s8(acc, second, xv.z, xv.w);
    }
    load(base + kWarps * kUnroll);
  }
  if (part == 0) {
    partial[warp][group] = acc[0];
    partial[warp][group + 8] = acc[2];
  }
  if (lane < 16) outlier_partial[warp][lane] = outlier_sum;
  __syncthreads();

  if (!finishes) return;
  int32_t total = 0;
  float outliers = 0.0f;
#pragma unroll
  for (int s = 0; s < kWarps; ++s) {
    total += partial[s][threadIdx.x];
    outliers += outlier_partial[s][threadIdx.x];
  }
  float value = static_cast<float>(total);
  if (zero_point || p.column_zeros != nullptr) {
    value = corrected(total, constants.zero, sum, p.column_zeros != nullptr ? p.column_zeros[n] : 0,
                      zero_point ? p.column_sums[n] : 0, p.k);
  }
  value = value * (constants.scale * (1.0f / 127.0f)) * (column_scale * (1.0f / 127.0f)) + outliers;
  static_cast<T *>(p.y)[n] = from_f32<T>(value + bias);
}

// Bytes of each of W's rows to ask L2 for early.
int early_bytes_of(const GemmParams &p, bool overlap) {
  const int64_t early = overlap ? kEarlyBytes / round_up(p.n, 32) / 16 * 16 : 0;
  return static_cast<int>(early < p.k ? early : round_up(p.k, 16));
}

template <typename T, int kRows, int kTiles>
int8_cuda_status launch_tiles(const GemmParams &p, cudaStream_t stream, bool overlap) {
  const int blocks = ceil_div(p.n, kRows * 16), early_bytes = early_bytes_of(p, overlap);
  Launch launch(dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, overlap);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, skinny_layer<T, kRows, kTiles>, p, early_bytes));
  return INT8_CUDA_OK;
}

template <typename T>
int8_cuda_status launch_typed(const GemmParams &p, cudaStream_t stream, bool overlap) {
  if (p.m <= 8) return launch_tiles<T, 1, 1>(p, stream, overlap);
  // More rows of W a block: x is read from L2 once a block, and that starts to count.
  if (p.m <= 16) return p.n >= 8192 ? launch_tiles<T, 2, 2>(p, stream, overlap) : launch_tiles<T, 1, 2>(p, stream, overlap);
  return launch_tiles<T, 2, 4>(p, stream, overlap);
}

template <typename T>
int8_cuda_status launch_one_typed(const GemmParams &p, bool zero_point, cudaStream_t stream, bool overlap) {
  const size_t shared = static_cast<size_t>(round_up(p.k, kWindow)) + ceil_div(p.k, 32) * 8 + kListed * 4;
  INT8_CUDA_TRY(allow_shared(skinny_one<T>, kSkinnyOneInner + kSkinnyOneInner / 4 + kListed * 4));
  Launch launch(dim3(static_cast<unsigned>(ceil_div(p.n, 16))), dim3(kThreads), shared, stream, overlap);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, skinny_one<T>, p, zero_point ? 1 : 0, early_bytes_of(p, overlap)));
  return INT8_CUDA_OK;
}

}  // namespace

int8_cuda_status launch_skinny_one(const GemmParams &p, int element, bool zero_point, cudaStream_t stream, bool overlap) {
  switch (element) {
    case INT8_CUDA_F16: return launch_one_typed<__half>(p, zero_point, stream, overlap);
    case INT8_CUDA_BF16: return launch_one_typed<__nv_bfloat16>(p, zero_point, stream, overlap);
    default: return INT8_CUDA_UNSUPPORTED;
  }
}

int8_cuda_status launch_skinny(const GemmParams &p, int element, cudaStream_t stream, bool overlap) {
  switch (element) {
    case INT8_CUDA_F16: return launch_typed<__half>(p, stream, overlap);
    case INT8_CUDA_BF16: return launch_typed<__nv_bfloat16>(p, stream, overlap);
    case INT8_CUDA_F32: return launch_typed<float>(p, stream, overlap);
    default: return INT8_CUDA_INVALID;
  }
}

}  // namespace int8_cuda
