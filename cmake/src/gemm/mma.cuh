// Tiles by mma.sync (sm_80 and later). A block computes one tile of
//   acc (i32) = q_x * q_w^T           mma.sync s8, stages of 64 bytes of K by cp.async
//   f (f32)   = acc * s_x [* s_w]     in place, in the accumulators' registers
//   f        += x_O * w_O^T           mma.sync f16|bf16 over the outlier columns
//   y         = f [* s_w] + bias      rounded once
// Two kinds. Compact: the outlier columns are stages of 32 columns of the compact operands, behind those of K in the same ring.
// Gathering (MMA): they are gathered from x and W element by element, any number of them, f32, too; and the raw i32 product.
#pragma once

#include "common/launch.cuh"
#include "epilogue/store.cuh"
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
  using Load = Loads<F>;
  const auto from_a = Load::template operand<F::kBm>(p.a + m0 * p.lda, p.lda);
  const auto from_w = Load::template operand<F::kBn>(p.w + n0 * p.ldw, p.ldw);
  const int64_t panel_row = 64 * 2;
  const auto from_outlier_x = Load::template operand<F::kBm>(static_cast<const uint8_t *>(p.outlier_x) + m0 * panel_row, panel_row, p.m * panel_row);
  const auto from_outlier_w = Load::template operand<F::kBn>(static_cast<const uint8_t *>(p.outlier_w) + n0 * panel_row, panel_row, p.n * panel_row);
  const auto to_a = F::a_of(memory);
  const auto to_b = F::b_of(memory);
  const auto load = [&](int step, int stage) {
    if (step < steps) {
      const bool inside = step * kStepBytes + Load::first_byte() < inner;
      Load::copy(from_a, to_a, step, 0, stage, p.m - m0, inside);
      Load::copy(from_w, to_b, step, 0, stage, p.n - n0, inside);
    } else if (step < all_steps) {
      const int half = step - steps;
      Load::copy(from_outlier_x, to_a, half % 2, half / 2, stage, p.m - m0, true);
      Load::copy(from_outlier_w, to_b, half % 2, half / 2, stage, p.n - n0, true);
    }
  };

  Part<F, T> part(memory);
  auto f = part.accumulators();
  auto sums = cute::recast<int32_t>(f);
  cute::clear(sums);
  auto ring = ring_of(part, load);
  ring.run(steps, [&](int k) { part.multiply_int8(k, sums); });

  const auto place = part.places();
  const auto row_of = [&](int i, int low) { return m0 + static_cast<int>(cute::get<0>(place(cute::make_coord(0, low), i, 0))); };
  // The first of eight neighbouring columns, of products 4g to 4g + 3.
  const auto column_of = [&](int g) { return n0 + static_cast<int>(cute::get<1>(place(cute::make_coord(0, 0), 0, 4 * g))); };
  const auto at = [](int low, int c) { return cute::make_coord(c % 2, low); };
  constexpr int kRows = cute::size<1>(f), kEights = cute::size<2>(f) / 4;
  // visit(n) of each column n, once, gives the function of its accumulators, (column, row) pair, block of 16 rows, product and row of
  // the pair.
  const auto each = [&](auto visit) {
#pragma unroll
    for (int g = 0; g < kEights; ++g) {
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const int n = column_of(g) + c;
        auto of_column = visit(n < p.n ? n : p.n - 1);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int low = 0; low < 2; ++low) of_column(at(low, c), i, 4 * g + c / 2, low);
        }
      }
    }
  };
  // Rows and columns beyond the end read the last one's; what comes of them is not stored.
  const auto inside_m = [&](int i, int low) { return min(row_of(i, low), p.m - 1); };
  if constexpr (!kRaw) {
    float row_scale[kRows][2];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int low = 0; low < 2; ++low) row_scale[i][low] = p.row_scales[inside_m(i, low)] * (1.0f / 127.0f);
    }
    if (p.row_zeros == nullptr && p.column_zeros == nullptr) {
      each([&](int n) {
        const float column_scale = p.weights_are_codes ? 1.0f : p.column_scales[n] * (1.0f / 127.0f);
        return [&, column_scale](auto v, int i, int j, int low) { f(v, i, j) = static_cast<float>(sums(v, i, j)) * row_scale[i][low] * column_scale; };
      });
    } else {
      each([&](int n) {
        const float column_scale = p.weights_are_codes ? 1.0f : p.column_scales[n] * (1.0f / 127.0f);
        const int zw = p.column_zeros != nullptr ? p.column_zeros[n] : 0, sw = p.row_zeros != nullptr ? p.column_sums[n] : 0;
        return [&, column_scale, zw, sw](auto v, int i, int j, int low) {
          const int m = inside_m(i, low);
          const int za = p.row_zeros != nullptr ? p.row_zeros[m] : 0, sa = p.column_zeros != nullptr ? p.row_sums[m] : 0;
          f(v, i, j) = corrected(sums(v, i, j), za, sa, zw, sw, p.k) * row_scale[i][low] * column_scale;
        };
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
    each([&](int n) {
      const float scale = p.weights_are_codes ? p.column_scales[n] * (1.0f / 127.0f) : 1.0f, bias = p.bias != nullptr ? p.bias[n] : 0.0f;
      return [&, scale, bias](auto v, int i, int j, int) { f(v, i, j) = fmaf(f(v, i, j), scale, bias); };
    });
  }

  // Eight neighbours of a row at a time where y is aligned for them.
  const auto store = [&](auto *y, auto convert) {
    using Element = cute::remove_cvref_t<decltype(*y)>;
    struct alignas(16) Eight { Element v[8]; };
    const bool wide = p.ldy % 8 == 0 && reinterpret_cast<uintptr_t>(y) % 16 == 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int low = 0; low < 2; ++low) {
        const int m = row_of(i, low);
        if (m >= p.m) continue;
#pragma unroll
        for (int g = 0; g < kEights; ++g) {
          const int n = column_of(g);
          Element *to = y + m * p.ldy + n;
          const auto of = [&](int c, auto before) { return convert(at(low, c), i, 4 * g + c / 2, before); };
          if (wide && n + 8 <= p.n) {
            Eight eight{};
            if (p.accumulate) eight = *reinterpret_cast<const Eight *>(to);
#pragma unroll
            for (int c = 0; c < 8; ++c) eight.v[c] = of(c, eight.v[c]);
            *reinterpret_cast<Eight *>(to) = eight;
          } else {
#pragma unroll
            for (int c = 0; c < 8; ++c) {
              if (n + c < p.n) to[c] = of(c, p.accumulate ? to[c] : Element{});
            }
          }
        }
      }
    }
  };
  if constexpr (kRaw) {
    store(static_cast<int32_t *>(p.y), [&](auto v, int i, int j, int32_t) { return sums(v, i, j); });
  } else if (p.y_is_f32) {
    store(static_cast<float *>(p.y), [&](auto v, int i, int j, float before) { return p.accumulate ? f(v, i, j) + before : f(v, i, j); });
  } else {
    store(static_cast<T *>(p.y), [&](auto v, int i, int j, T before) { return from_f32<T>(p.accumulate ? f(v, i, j) + to_f32(before) : f(v, i, j)); });
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
