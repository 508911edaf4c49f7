// Tiles by mma.sync (sm_80 and later). A block computes one tile of
//   acc (i32) = q_x * q_w^T           mma.sync s8, stages of 64 bytes of K by cp.async
//   f (f32)   = acc * s_x [* s_w]     in place, in the accumulators' registers
//   f        += x_O * w_O^T           mma.sync f16|bf16 over the outlier columns
//   y         = f [* s_w] + bias      rounded once
// Two kinds. Compact: the outlier columns are stages of 32 columns of the compact operands, behind those of K in the same ring.
// Gathering (MMA): they are gathered from x and W element by element, any number of them, f32, too; and the raw i32 product.
#pragma once

#include "common/launch.cuh"
#include "epilogue/zero_point.cuh"
#include "gemm/gemm.cuh"
#include "gemm/mma_tile.cuh"

namespace int8_cuda {
namespace tile {

struct Raw {};  // stands for "i32 output, no epilogue"

// Rows of tiles that neighbouring blocks walk before the next column of tiles: their x and W stay in the L2 cache.
constexpr int kPanel = 8;

template <typename T, typename F, bool kGathers>
__global__ void __launch_bounds__(F::kThreads, F::kBlocks) mma_gemm(const __grid_constant__ GemmParams p) {
#if __CUDA_ARCH__ >= 800
  extern __shared__ __align__(128) uint8_t memory[];
  constexpr bool kRaw = sizeof(T) == 1;
  pdl_trigger();
  const int tiles_m = ceil_div(p.m, F::kBm), tiles_n = ceil_div(p.n, F::kBn);
  const int panel = static_cast<int>(blockIdx.x) / (kPanel * tiles_n), rest = static_cast<int>(blockIdx.x) % (kPanel * tiles_n);
  const int width = min(kPanel, tiles_m - panel * kPanel);
  const int m0 = (panel * kPanel + rest % width) * F::kBm, n0 = rest / width * F::kBn;
  pdl_wait();
  const int outliers = !kRaw && p.outlier_count != nullptr ? static_cast<int>(*p.outlier_count) : 0;
  // More outlier columns than the compact operands hold are the gathering kernel's.
  if (kGathers ? p.only_beyond_capacity && outliers <= p.outlier_ld : p.outlier_ld < p.k && outliers > p.outlier_ld) return;

  const int inner = round_up(p.k, 16), steps = ceil_div(inner, kStepBytes);
  // A panel of 64 outlier columns is two steps, of the last one the second only where it has columns.
  const int all_steps = steps + (kGathers ? 0 : ceil_div(outliers, kOutlierStep));
  const LoadsA<F> load_x(p.a + int64_t{m0} * p.lda, p.lda, p.m - m0);
  const LoadsB<F> load_w(p.w + int64_t{n0} * p.ldw, p.ldw, p.n - n0);
  constexpr int kPanelRow = 64 * 2;
  const auto load = [&](int step, int stage) {
    uint8_t *a = F::a_of(memory, stage), *b = F::b_of(memory, stage);
    if (step < steps) {
      const int k = step * kStepBytes;
      load_x(a, k, k + load_x.byte() < inner);
      load_w(b, k, k + load_w.byte() < inner);
    } else if (step < all_steps) {
      // [panels, rows, 64] in 16 bits.
      const int64_t panel = (step - steps) / 2, half = (step - steps) % 2 * kStepBytes;
      LoadsA<F>(static_cast<const uint8_t *>(p.outlier_x) + (panel * p.m + m0) * kPanelRow, kPanelRow, p.m - m0)(a, half, true);
      LoadsB<F>(static_cast<const uint8_t *>(p.outlier_w) + (panel * p.n + n0) * kPanelRow, kPanelRow, p.n - n0)(b, half, true);
    }
  };

  Part<F, T> part(memory);
  auto f = part.accumulators();
  auto sums = cute::recast<int32_t>(f);
  cute::clear(sums);
  auto ring = ring_of(part, load);
  ring.run(steps, [&](int k) { part.multiply_int8(k, sums); });

  // From here on by plain indices: the order of a thread's accumulators is that of f.
  constexpr int kRows = cute::size<1>(f), kEights = cute::size<2>(f) / 4;
  float *const values = f.data();
  // Accumulator of row (i, low) and column c of eight g; products 4g to 4g + 3 have the eight.
  const auto at = [](int i, int low, int g, int c) { return c % 2 + 2 * low + 4 * i + 4 * kRows * (4 * g + c / 2); };
  int rows[kRows][2], columns[kEights];
  const auto place = part.places();
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int low = 0; low < 2; ++low) rows[i][low] = m0 + static_cast<int>(cute::get<0>(place(at(i, low, 0, 0))));
  }
#pragma unroll
  for (int g = 0; g < kEights; ++g) columns[g] = n0 + static_cast<int>(cute::get<1>(place(at(0, 0, g, 0))));
  // visit(index, i, low, column), by columns, so that what belongs to one is read once and not kept. Rows and columns beyond the
  // end read the last one's; what comes of them is not stored.
  const auto each = [&](auto of_column, auto visit) {
#pragma unroll
    for (int g = 0; g < kEights; ++g) {
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const auto column = of_column(min(columns[g] + c, p.n - 1));
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int low = 0; low < 2; ++low) visit(values[at(i, low, g, c)], i, low, column);
        }
      }
    }
  };
  if constexpr (!kRaw) {
    float row_scales[kRows][2];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int low = 0; low < 2; ++low) row_scales[i][low] = p.row_scales[min(rows[i][low], p.m - 1)] * (1.0f / 127.0f);
    }
    const auto scale_of = [&](int n) { return p.weights_are_codes ? 1.0f : p.column_scales[n] * (1.0f / 127.0f); };
    if (p.row_zeros == nullptr && p.column_zeros == nullptr) {
      each(scale_of, [&](float &v, int i, int low, float scale) { v = static_cast<float>(__float_as_int(v)) * row_scales[i][low] * scale; });
    } else {
      struct Column {
        float scale;
        int zero, sum;
      };
      const auto of = [&](int n) {
        return Column{scale_of(n), p.column_zeros != nullptr ? p.column_zeros[n] : 0, p.row_zeros != nullptr ? p.column_sums[n] : 0};
      };
      each(of, [&](float &v, int i, int low, const Column &column) {
        const int m = min(rows[i][low], p.m - 1);
        const int zero = p.row_zeros != nullptr ? p.row_zeros[m] : 0, sum = p.column_zeros != nullptr ? p.row_sums[m] : 0;
        v = corrected(__float_as_int(v), zero, sum, column.zero, column.sum, p.k) * row_scales[i][low] * column.scale;
      });
    }
    if constexpr (!kGathers) {
      ring.run(all_steps - steps, [&](int k) { part.multiply_16bit(k, f); });
    } else {
      cute::cp_async_wait<0>();
      // Outlier column j of x; 0 where a value of it is no outlier.
      const auto outlier_x = [&](int row, int j) {
        if (p.outlier_x_complete) return static_cast<const T *>(p.outlier_x)[outlier_index(p.m, row, j)];
        const int k = p.outlier_columns[j];
        const T v = static_cast<const T *>(p.x)[row * p.ldx + k];
        if (!p.by_value) return v;
        const float threshold = p.thresholds != nullptr ? p.thresholds[row] : p.threshold;
        return fabsf(to_f32(v)) >= threshold ? v : from_f32<T>(0.0f);
      };
      // Codes are exact in 16 bits: where no exact columns are kept, the column scale is applied last.
      const auto outlier_w = [&](int row, int k) {
        if (!p.weights_are_codes) return from_f32<T>(outlier_weight<T>(p.weight, row, k));
        const int zero = p.column_zeros != nullptr ? p.column_zeros[row] : 0;
        return from_f32<T>(static_cast<float>(p.w[row * p.ldw + k] - zero));
      };
      accumulate_gathered<false>(
          part, f, outliers,
          [&](int row, int j) { return m0 + row < p.m ? outlier_x(m0 + row, j) : from_f32<T>(0.0f); },
          [&](int row, int j) { return n0 + row < p.n ? outlier_w(n0 + row, p.outlier_columns[j]) : from_f32<T>(0.0f); });
    }
    const auto last = [&](int n) {
      return make_float2(p.weights_are_codes ? p.column_scales[n] * (1.0f / 127.0f) : 1.0f, p.bias != nullptr ? p.bias[n] : 0.0f);
    };
    each(last, [](float &v, int, int, float2 column) { v = fmaf(v, column.x, column.y); });
  }

  // Eight neighbours of a row at a time where y is aligned for them.
  const auto store = [&](auto *y, auto convert) {
    using Element = cute::remove_cvref_t<decltype(*y)>;
    struct alignas(16) Eight {
      Element v[8];
    };
    const bool wide = p.ldy % 8 == 0 && reinterpret_cast<uintptr_t>(y) % 16 == 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int low = 0; low < 2; ++low) {
        if (rows[i][low] >= p.m) continue;
#pragma unroll
        for (int g = 0; g < kEights; ++g) {
          Element *to = y + rows[i][low] * p.ldy + columns[g];
          const int count = min(p.n - columns[g], 8);
          Eight eight{};
          if (p.accumulate) {
            if (wide && count == 8) {
              eight = *reinterpret_cast<const Eight *>(to);
            } else {
#pragma unroll
              for (int c = 0; c < 8; ++c) eight.v[c] = c < count ? to[c] : Element{};
            }
          }
#pragma unroll
          for (int c = 0; c < 8; ++c) eight.v[c] = convert(values[at(i, low, g, c)], eight.v[c]);
          if (wide && count == 8) {
            *reinterpret_cast<Eight *>(to) = eight;
          } else {
#pragma unroll
            for (int c = 0; c < 8; ++c) {
              if (c < count) to[c] = eight.v[c];
            }
          }
        }
      }
    }
  };
  // y is added in f32 before the rounding.
  if constexpr (kRaw) {
    store(static_cast<int32_t *>(p.y), [](float v, int32_t) { return __float_as_int(v); });
  } else if (p.y_is_f32) {
    store(static_cast<float *>(p.y), [&](float v, float before) { return p.accumulate ? v + before : v; });
  } else {
    store(static_cast<T *>(p.y), [&](float v, T before) { return from_f32<T>(p.accumulate ? v + to_f32(before) : v); });
  }
#endif
}

template <typename T, typename F, bool kGathers>
int8_cuda_status launch_tile(const GemmParams &p, cudaStream_t stream, bool overlap) {
  const int64_t tiles = ceil_div<int64_t>(p.m, F::kBm) * ceil_div<int64_t>(p.n, F::kBn);
  if (tiles > INT32_MAX) return INT8_CUDA_UNSUPPORTED;
  auto *kernel = mma_gemm<T, F, kGathers>;
  INT8_CUDA_TRY(allow_shared(kernel, F::kBytes));
  Launch launch(dim3(static_cast<unsigned>(tiles)), dim3(F::kThreads), F::kBytes, stream, overlap);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, kernel, p));
  return INT8_CUDA_OK;
}

}  // namespace tile
}  // namespace int8_cuda
