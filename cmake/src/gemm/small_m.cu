// SMALL_M, for M <= 32: bound by the bytes of W, so every weight byte is read once, straight into the registers of mma.sync,
// and never touches shared memory.
//
// A dot product does not depend on the order of k: a thread loads 16 consecutive bytes of a row of W and the same 16 of a row
// of x, and gives them to two mma.sync as if they were the scattered k that the instruction names.
#include "common/launch.cuh"
#include "epilogue/store.cuh"
#include "epilogue/zero_point.cuh"
#include "gemm/mma_sync.cuh"
#include "gemm/weight_loads.cuh"

namespace int8_cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
// Bytes of K that a warp takes at a time: four threads a row, 16 bytes each.
constexpr int kWindow = 64;

// kRows: tiles of 16 rows of W a block has. kTiles: tiles of 8 rows of x. The eight warps partition K.
template <typename T, int kRows, int kTiles>
__global__ void __launch_bounds__(kThreads, kRows * kTiles == 1 ? 3 : kTiles == 4 ? 1 : 2) small_m_gemm(const __grid_constant__ GemmParams p, int early_bytes) {
  constexpr int kN = kRows * 16, kM = kTiles * 8, kOutputs = kN * kM;
  // Windows in flight a warp: 8 loads of W, with two blocks an SM 64 KB, which hides the latency of memory.
  constexpr int kUnroll = 4 / kRows;
  __shared__ int32_t partial[kWarps][kOutputs];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, part = lane % 4;
  const int first_n = blockIdx.x * kN;
  const int inner = round_up(p.k, 16), windows = ceil_div(inner, kWindow);

  if (early_bytes > 0 && threadIdx.x < kN && first_n + static_cast<int>(threadIdx.x) < p.n) {
    prefetch_bytes_to_l2(p.w + (first_n + static_cast<int64_t>(threadIdx.x)) * p.ldw, min(early_bytes, inner));
  }
  pdl_trigger();
  pdl_wait();

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
  // Loaded before the weights and used after: the number of outlier columns, and this warp's first (if it has one).
  const bool decompose = p.outlier_count != nullptr;
  const uint32_t outliers = decompose ? *p.outlier_count : 0;
  int next_column = decompose && warp < p.k ? p.outlier_columns[warp] : 0;
  load(warp);

  // The outliers' latency hides behind the first weights'. The warps partition the columns; a half-warp has the 16 rows of W,
  // the two half-warps alternate rows of x.
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

  // A thread writes the outputs threadIdx.x + i*kThreads: neighbours in n, so that stores are coalesced.
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
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int output = threadIdx.x + i * kThreads, m = output / kN, n = first_n + output % kN;
    if (output >= kOutputs || m >= p.m || n >= p.n) continue;
    float value = result[i] + (p.bias != nullptr ? p.bias[n] : 0.0f);
    if (p.accumulate) value += load_y<T>(p.y, p.y_is_f32, m * p.ldy + n);
    store_y<T>(p.y, p.y_is_f32, m * p.ldy + n, value);
  }
}

template <typename T, int kRows, int kTiles>
int8_cuda_status launch_tiles(const GemmParams &p, cudaStream_t stream, bool overlap) {
  const int blocks = ceil_div(p.n, kRows * 16), early_bytes = early_bytes_of(p, overlap);
  Launch launch(dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, overlap);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, small_m_gemm<T, kRows, kTiles>, p, early_bytes));
  return INT8_CUDA_OK;
}

template <typename T>
int8_cuda_status launch_typed(const GemmParams &p, cudaStream_t stream, bool overlap) {
  if (p.m <= 8) return launch_tiles<T, 1, 1>(p, stream, overlap);
  // More rows of W a block: x is read from L2 once a block, which counts from here on.
  if (p.m <= 16) return p.n >= 8192 ? launch_tiles<T, 2, 2>(p, stream, overlap) : launch_tiles<T, 1, 2>(p, stream, overlap);
  return launch_tiles<T, 2, 4>(p, stream, overlap);
}

}  // namespace

int8_cuda_status launch_small_m(const GemmParams &p, int element, cudaStream_t stream, bool overlap) {
  switch (element) {
    case INT8_CUDA_F16: return launch_typed<__half>(p, stream, overlap);
    case INT8_CUDA_BF16: return launch_typed<__nv_bfloat16>(p, stream, overlap);
    case INT8_CUDA_F32: return launch_typed<float>(p, stream, overlap);
    default: return INT8_CUDA_INVALID;
  }
}

}  // namespace int8_cuda
