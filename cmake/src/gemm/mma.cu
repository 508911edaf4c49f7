// MMA, for every size and type on sm_80 and later: 128x128 tiles, cp.async into three stages, mma.sync. The outlier product
// continues on the same accumulators, as in wgmma.cuh, but gathers W's outlier columns from W: no capacity limits it, which
// makes it the fallback of WGMMA.
#include "common/launch.cuh"
#include "epilogue/store.cuh"
#include "epilogue/zero_point.cuh"
#include "gemm/gemm.cuh"
#include "gemm/mma_tile.cuh"

namespace int8_cuda {
namespace {

using namespace tile;
constexpr int kStages = 3;  // 3 x 16 KB: the 48 KB of static shared memory

struct Raw {};  // stands for "i32 output, no epilogue"

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) mma_gemm(const __grid_constant__ GemmParams p) {
  // 48 KB; the f32 outlier product reuses 17 KB of it.
  __shared__ alignas(128) uint8_t memory[kStages][(kBm + kBn) * kBk];
  constexpr bool kRaw = sizeof(T) == 1;
  const int m0 = blockIdx.y * kBm, n0 = blockIdx.x * kBn;
  pdl_trigger();
  pdl_wait();
  const int outliers = !kRaw && p.outlier_count != nullptr ? static_cast<int>(*p.outlier_count) : 0;
  if (p.only_beyond_capacity && outliers <= p.outlier_ld) return;

  const int inner = round_up(p.k, 16), steps = ceil_div(inner, kBk);
  auto load = [&](int step) {
    const uint32_t stage = static_cast<uint32_t>(__cvta_generic_to_shared(memory[step % kStages]));
#pragma unroll
    for (int i = 0; i < (kBm + kBn) * 4 / kThreads; ++i) {
      const int index = threadIdx.x + i * kThreads, row = index / 4, chunk = index % 4;
      const int k = step * kBk + chunk * 16;
      const bool of_a = row < kBm;
      const int global = of_a ? m0 + row : n0 + row - kBm;
      const bool inside = step < steps && k < inner && global < (of_a ? p.m : p.n);
      const int8_t *from = of_a ? p.a + global * p.lda + k : p.w + global * p.ldw + k;
      copy_async_16(stage + (of_a ? 0 : kBm * kBk) + at(of_a ? row : row - kBm, chunk), inside ? from : p.w, inside);
    }
    copy_async_commit();
  };
  int32_t acc[4][4][4] = {};
  for (int s = 0; s < kStages - 1; ++s) load(s);
  for (int step = 0; step < steps; ++step) {
    copy_async_wait<kStages - 2>();
    __syncthreads();
    load(step + kStages - 1);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[4][4], b[2][4];
      load_fragments(memory[step % kStages], half, a, b);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) mma_s8(acc[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
  copy_async_wait<0>();
  __syncthreads();

  auto row_of = [&](int i, int e) { return m0 + local_row(i, e); };
  auto column_of = [&](int j, int e) { return n0 + local_column(j, e); };
  if constexpr (kRaw) {
    int32_t *y = static_cast<int32_t *>(p.y);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int m = row_of(i, e), n = column_of(j, e);
          if (m < p.m && n < p.n) y[m * p.ldy + n] = acc[i][j][e];
        }
      }
    }
  } else {
    float f[4][4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int m = row_of(i, e), n = column_of(j, e);
          f[i][j][e] = 0.0f;
          if (m >= p.m || n >= p.n) continue;
          float value = static_cast<float>(acc[i][j][e]);
          if (p.row_zeros != nullptr || p.column_zeros != nullptr) {
            value = corrected(acc[i][j][e], p.row_zeros != nullptr ? p.row_zeros[m] : 0,
                              p.column_zeros != nullptr ? p.row_sums[m] : 0, p.column_zeros != nullptr ? p.column_zeros[n] : 0,
                              p.row_zeros != nullptr ? p.column_sums[n] : 0, p.k);
          }
          f[i][j][e] = value * (p.row_scales[m] * (1.0f / 127.0f));
          if (!p.weights_are_codes) f[i][j][e] *= p.column_scales[n] * (1.0f / 127.0f);
        }
      }
    }

    // Outlier column j of x; 0 where a value of it is no outlier.
    auto outlier_x = [&](int row, int j) {
      if (p.outlier_x_complete) return static_cast<const T *>(p.outlier_x)[outlier_index(p.m, row, j)];
      const int k = p.outlier_columns[j];
      const T v = static_cast<const T *>(p.x)[row * p.ldx + k];
      if (!p.by_value) return v;
      const float threshold = p.thresholds != nullptr ? p.thresholds[row] : p.threshold;
      return fabsf(to_f32(v)) >= threshold ? v : from_f32<T>(0.0f);
    };
    // Codes are exact in 16 bits: where no exact columns are kept, the column scale is applied last.
    auto outlier_w = [&](int row, int k) {
      if (!p.weights_are_codes) return from_f32<T>(outlier_weight<T>(p.weight, row, k));
      const int zero = p.column_zeros != nullptr ? p.column_zeros[row] : 0;
      return from_f32<T>(static_cast<float>(p.w[row * p.ldw + k] - zero));
    };
    accumulate_gathered<T, false>(
        f, memory[0], outliers,
        [&](int row, int j) { return m0 + row < p.m ? outlier_x(m0 + row, j) : from_f32<T>(0.0f); },
        [&](int row, int j) { return n0 + row < p.n ? outlier_w(n0 + row, p.outlier_columns[j]) : from_f32<T>(0.0f); });

#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int m = row_of(i, e), n = column_of(j, e);
          if (m >= p.m || n >= p.n) continue;
          const float scale = p.weights_are_codes ? p.column_scales[n] * (1.0f / 127.0f) : 1.0f;
          float value = fmaf(f[i][j][e], scale, p.bias != nullptr ? p.bias[n] : 0.0f);
          if (p.accumulate) value += load_y<T>(p.y, p.y_is_f32, m * p.ldy + n);
          store_y<T>(p.y, p.y_is_f32, m * p.ldy + n, value);
        }
      }
    }
  }
}

template <typename T>
int8_cuda_status launch_typed(const GemmParams &p, cudaStream_t stream, bool overlap) {
  // grid.y ends at 65535 tiles: 8.3 million rows.
  const dim3 grid(static_cast<unsigned>(ceil_div(p.n, kBn)), static_cast<unsigned>(ceil_div(p.m, kBm)));
  if (grid.y > 65535) return INT8_CUDA_UNSUPPORTED;
  Launch launch(grid, dim3(kThreads), 0, stream, overlap);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, mma_gemm<T>, p));
  return INT8_CUDA_OK;
}

}  // namespace

int8_cuda_status launch_mma(const GemmParams &p, int element, cudaStream_t stream, bool overlap) {
  switch (element) {
    case INT8_CUDA_F16: return launch_typed<__half>(p, stream, overlap);
    case INT8_CUDA_BF16: return launch_typed<__nv_bfloat16>(p, stream, overlap);
    case INT8_CUDA_F32: return launch_typed<float>(p, stream, overlap);
    default: return INT8_CUDA_INVALID;
  }
}

int8_cuda_status launch_mma_i32(const GemmParams &p, cudaStream_t stream) { return launch_typed<Raw>(p, stream, false); }

}  // namespace int8_cuda
