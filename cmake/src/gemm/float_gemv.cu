// y (+)= x * w^T + bias for few rows of x: bound by the bytes of w, each read once, straight into registers.
//
// The order in which an output is summed depends on k alone, so a row's results do not depend on the other rows.
#include "gemm/float_linear.cuh"
#include "gemm/mma_sync.cuh"
#include "gemm/weight_loads.cuh"

namespace int8_cuda {
namespace {

using Params = int8_cuda_float_linear_params;

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;

// Eight elements (16-bit) or four (f32) from column k on, 0 behind the row's end. kVector: k is a multiple of that many, rows
// are 16-byte aligned.
template <typename T, bool kVector, bool kStreamed>
__device__ __forceinline__ uint4 load_16_bytes(const T *row, int column, int k) {
  constexpr int kEach = 16 / sizeof(T);
  if constexpr (kVector) {
    if (column >= k) return make_uint4(0, 0, 0, 0);
    return kStreamed ? load_streamed(row + column) : *reinterpret_cast<const uint4 *>(row + column);
  }
  uint4 words;
  T *v = reinterpret_cast<T *>(&words);
#pragma unroll
  for (int i = 0; i < kEach; ++i) v[i] = column + i < k ? row[column + i] : from_f32<T>(0.0f);
  return words;
}

// ---- 16 bits: tensor cores. As in SMALL_M, a thread loads 16 consecutive bytes of a row of w and the same 16 of a row of x,
// and gives them to two mma.sync as if they were the scattered k that the instruction names. ----

// Columns of a window: four threads a row, 8 columns each. A warp takes two windows, 128 bytes of a row, at a time.
constexpr int kWindow = 32, kPair = 2;

// A block has 16 rows of w, or, with kHalf, 8: more blocks where n is small. The eight warps partition k.
template <typename T, bool kVector, bool kHalf>
__global__ void __launch_bounds__(kThreads, kVector && !kHalf ? 4 : 2) gemv_16bit(const __grid_constant__ Params p, int early_bytes, int early_blocks) {
  constexpr int kN = kHalf ? 8 : 16, kParts = kHalf ? 1 : 2, kM = kFloatGemvM;
  // Windows in flight a warp: 8 loads of w; with four blocks an SM 128 KB.
  constexpr int kUnroll = !kVector ? 2 : kHalf ? 8 : 4;
  __shared__ float partial[kWarps][kN * kM];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, part = lane % 4;
  const int first_n = blockIdx.x * kN, n = static_cast<int>(p.n), m = static_cast<int>(p.m), k = static_cast<int>(p.k);
  const T *weights = static_cast<const T *>(p.w);

  if (static_cast<int>(blockIdx.x) < early_blocks && threadIdx.x < kN && first_n + static_cast<int>(threadIdx.x) < n) {
    prefetch_bytes_to_l2(weights + (first_n + static_cast<int64_t>(threadIdx.x)) * k, early_bytes);
  }
  pdl_trigger();
  // Output (row of x, row of w) of this thread; loaded here, used at the end.
  const int output_m = threadIdx.x / kN, output_n = first_n + threadIdx.x % kN;
  const bool writes = output_m < m && output_n < n;
  float added = writes && p.bias != nullptr ? p.bias[output_n] : 0.0f;
  // Rows beyond n read row n - 1; their results are not stored.
  const T *w[kParts];
#pragma unroll
  for (int h = 0; h < kParts; ++h) w[h] = weights + static_cast<int64_t>(min(first_n + h * 8 + group, n - 1)) * k;
  const T *x = static_cast<const T *>(p.x) + group * p.ldx;
  const bool has_x = group < m;

  uint4 wv[kUnroll][kParts], xv[kUnroll];
  // Window u of a step: pairs of neighbouring windows go around the warps.
  auto column_of = [&](int step, int u) { return ((step * (kUnroll / kPair) + u / kPair) * kWarps + warp) * kPair * kWindow + u % kPair * kWindow + part * 8; };
  auto load_w = [&](int step) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int h = 0; h < kParts; ++h) wv[u][h] = load_16_bytes<T, kVector, true>(w[h], column_of(step, u), k);
    }
  };
  auto load_x = [&](int step) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      xv[u] = has_x ? load_16_bytes<T, kVector, false>(x, column_of(step, u), k) : make_uint4(0, 0, 0, 0);
    }
  };
  load_w(0);  // weights: before the wait
  pdl_wait();
  load_x(0);
  if (writes && p.store == INT8_CUDA_ACCUMULATE) added += load_element(p.y, output_m * p.ldy + output_n, p.y_element);

  float acc[4] = {};
  const int steps = ceil_div(k, kUnroll * kWarps * kWindow);
  for (int step = 0; step < steps; ++step) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const uint4 low = wv[u][0], high = kHalf ? make_uint4(0, 0, 0, 0) : wv[u][kParts - 1];
      const uint32_t first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
      mma_16bit(acc, first, xv[u].x, xv[u].y, T{});
      mma_16bit(acc, second, xv[u].z, xv[u].w, T{});
    }
    if (step + 1 < steps) {
      load_w(step + 1);
      load_x(step + 1);
    }
  }
#pragma unroll
  for (int i = 0; i < 2 * kParts; ++i) partial[warp][(part * 2 + i % 2) * kN + group + i / 2 * 8] = acc[i];
  __syncthreads();
  if (!writes) return;
  float sum = 0.0f;
#pragma unroll
  for (int s = 0; s < kWarps; ++s) sum += partial[s][threadIdx.x];
  store_element(p.y, output_m * p.ldy + output_n, p.y_element, sum + added);
}

// ---- f32: fused multiply-adds. A warp has kRows rows of w, a lane four neighbouring columns of each 128. ----

template <bool kVector, int kRows, int kM>
__global__ void __launch_bounds__(kThreads) gemv_f32(const __grid_constant__ Params p, int early_bytes, int early_blocks) {
  constexpr int kUnroll = 8 / kRows, kColumns = 128;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_n = (blockIdx.x * kWarps + warp) * kRows, n = static_cast<int>(p.n), m = static_cast<int>(p.m), k = static_cast<int>(p.k);
  if (first_n >= n) return;
  const float *weights = static_cast<const float *>(p.w), *x = static_cast<const float *>(p.x);
  if (static_cast<int>(blockIdx.x) < early_blocks && lane < kRows && first_n + lane < n) {
    prefetch_bytes_to_l2(weights + static_cast<int64_t>(first_n + lane) * k, early_bytes);
  }
  pdl_trigger();
  const float *w[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) w[r] = weights + static_cast<int64_t>(min(first_n + r, n - 1)) * k;
  uint4 wv[kUnroll][kRows];
  auto load_w = [&](int base) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) wv[u][r] = load_16_bytes<float, kVector, true>(w[r], base + u * kColumns, k);
    }
  };
  load_w(lane * 4);  // weights: before the wait
  pdl_wait();

  float acc[kRows][kM] = {};
  for (int base = lane * 4; base < k; base += kUnroll * kColumns) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int row = 0; row < kM; ++row) {
        // Rows beyond m repeat the last; their sums are not stored.
        const uint4 words = load_16_bytes<float, kVector, false>(x + min(row, m - 1) * p.ldx, base + u * kColumns, k);
        const float xv[4] = {__uint_as_float(words.x), __uint_as_float(words.y), __uint_as_float(words.z), __uint_as_float(words.w)};
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          acc[r][row] = fmaf(__uint_as_float(wv[u][r].x), xv[0], acc[r][row]);
          acc[r][row] = fmaf(__uint_as_float(wv[u][r].y), xv[1], acc[r][row]);
          acc[r][row] = fmaf(__uint_as_float(wv[u][r].z), xv[2], acc[r][row]);
          acc[r][row] = fmaf(__uint_as_float(wv[u][r].w), xv[3], acc[r][row]);
        }
      }
    }
    load_w(base + kUnroll * kColumns);
  }
#pragma unroll
  for (int row = 0; row < kM; ++row) {
    if (row >= m) break;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float sum = acc[r][row];
#pragma unroll
      for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
      const int column = first_n + r;
      if (lane != row * kRows + r || column >= n) continue;
      float added = p.bias != nullptr ? p.bias[column] : 0.0f;
      if (p.store == INT8_CUDA_ACCUMULATE) added += static_cast<float *>(p.y)[row * p.ldy + column];
      static_cast<float *>(p.y)[row * p.ldy + column] = sum + added;
    }
  }
}

// The first blocks, which run at the same time, prefetch kEarlyBytes of w together before the PDL wait.
template <typename Kernel>
int8_cuda_status launch(Kernel kernel, const Params &p, int block_rows, int resident, int element_size, bool overlap) {
  const int64_t blocks = ceil_div<int64_t>(p.n, block_rows), early_blocks = !overlap ? 0 : blocks < resident ? blocks : resident;
  const int64_t row_bytes = p.k * element_size;
  int64_t early = early_blocks > 0 ? kEarlyBytes / (early_blocks * block_rows) : 0;
  // Whole 16 bytes of aligned rows.
  early = (early < row_bytes ? early : row_bytes) / 16 * 16;
  const bool possible = early > 0 && row_bytes % 16 == 0 && reinterpret_cast<uintptr_t>(p.w) % 16 == 0;
  Launch configuration(dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, static_cast<cudaStream_t>(p.stream), overlap);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&configuration.config, kernel, p, static_cast<int>(early),
                                   static_cast<int>(possible ? early_blocks : 0)));
  return INT8_CUDA_OK;
}

template <typename T>
int8_cuda_status launch_16bit(const Params &p, bool vector, int multiprocessors, bool overlap) {
  const int resident = 4 * multiprocessors;
  if (p.n < static_cast<int64_t>(multiprocessors) * 16) {
    return launch(vector ? gemv_16bit<T, true, true> : gemv_16bit<T, false, true>, p, 8, resident, 2, overlap);
  }
  return launch(vector ? gemv_16bit<T, true, false> : gemv_16bit<T, false, false>, p, 16, resident, 2, overlap);
}

template <int kRows, int kM>
int8_cuda_status launch_f32(const Params &p, bool vector, int multiprocessors, bool overlap) {
  return launch(vector ? gemv_f32<true, kRows, kM> : gemv_f32<false, kRows, kM>, p, kRows * kWarps, 3 * multiprocessors, 4, overlap);
}

}  // namespace

int8_cuda_status launch_float_gemv(const Params &p, int multiprocessors, bool overlap) {
  const int64_t each = p.element == INT8_CUDA_F32 ? 4 : 8;
  const bool vector = p.k % each == 0 && rows_aligned(p.x, p.ldx, p.element) && rows_aligned(p.w, p.k, p.element);
  switch (p.element) {
    case INT8_CUDA_F16: return launch_16bit<__half>(p, vector, multiprocessors, overlap);
    case INT8_CUDA_BF16: return launch_16bit<__nv_bfloat16>(p, vector, multiprocessors, overlap);
    case INT8_CUDA_F32:
      // Few rows: two rows of w a warp, for more warps; else four, because each reads all of x.
      if (p.m == 1) return launch_f32<2, 1>(p, vector, multiprocessors, overlap);
      if (p.m <= 2) return launch_f32<2, 2>(p, vector, multiprocessors, overlap);
      return p.m <= 4 ? launch_f32<4, 4>(p, vector, multiprocessors, overlap) : launch_f32<4, 8>(p, vector, multiprocessors, overlap);
    default: return INT8_CUDA_INVALID;
  }
}

}  // namespace int8_cuda
