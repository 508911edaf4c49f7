// Tiles of 128x128 outputs, eight warps of 64x32, with operands in shared memory in rows of 64 bytes; and the product of
// operands gathered element by element.
#pragma once

#include "gemm/mma_sync.cuh"

namespace int8_cuda {
namespace tile {

constexpr int kBm = 128, kBn = 128;
constexpr int kBk = 64;  // bytes of a row in shared memory
constexpr int kThreads = 256;
constexpr int kStep = 32;     // elements of 16 bits in such a row
constexpr int kStepF32 = 16;  // f32 elements at a time, in rows of 17 words against bank conflicts

// 16-byte chunk `chunk` of row `row`. The swizzle keeps eight rows of one chunk in different banks.
__device__ __forceinline__ uint32_t at(int row, int chunk) { return row * kBk + ((chunk ^ (row / 2 % 4)) * 16); }

// Where element e of accumulator [i][j] of this thread lies in the tile.
__device__ __forceinline__ int local_row(int i, int e) {
  return static_cast<int>(threadIdx.x) / 128 * 64 + i * 16 + static_cast<int>(threadIdx.x) % 32 / 4 + e / 2 * 8;
}
__device__ __forceinline__ int local_column(int j, int e) {
  return static_cast<int>(threadIdx.x) / 32 % 4 * 32 + j * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + e % 2;
}

// This warp's fragments of a tile of A (kBm rows) followed by one of B (kBn rows). half: lower or upper 32 bytes.
__device__ __forceinline__ void load_fragments(const uint8_t *stage, int half, uint32_t (&a)[4][4], uint32_t (&b)[2][4]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warp_m = warp / 4 * 64, warp_n = warp % 4 * 32;
  const uint32_t base = static_cast<uint32_t>(__cvta_generic_to_shared(stage));
#pragma unroll
  for (int i = 0; i < 4; ++i) ldmatrix_x4(a[i], base + at(warp_m + i * 16 + lane % 16, half * 2 + lane / 16));
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    // Matrices: rows 0-7 lower, upper chunk, rows 8-15 lower, upper chunk.
    ldmatrix_x4(b[j], base + kBm * kBk + at(warp_n + j * 16 + lane / 16 * 8 + lane % 8, half * 2 + lane / 8 % 2));
  }
}

// f += x [kBm, count] * w [kBn, count]^T with x_at(row, j) and w_at(row, j) returning T. 16-bit types on tensor cores, f32
// by fused multiply-adds (no tensor-core form keeps 24 bits). memory: 17,408 bytes, 16 KB for 16-bit types.
// kWByRow: neighbouring threads call w_at for neighbouring rows instead of neighbouring j.
template <typename T, bool kWByRow, typename X, typename W>
__device__ __forceinline__ void accumulate_gathered(float (&f)[4][4][4], uint8_t *memory, int count, X x_at, W w_at) {
  constexpr int kWide = sizeof(T) == 2 ? kStep : kStepF32;
  float(*words)[kStepF32 + 1] = reinterpret_cast<float(*)[kStepF32 + 1]>(memory);
  auto put = [&](int row, int j, T v) {
    if constexpr (sizeof(T) == 2) {
      *reinterpret_cast<T *>(memory + (row < kBm ? 0 : kBm * kBk) + at(row % kBm, j / 8) + j % 8 * 2) = v;
    } else {
      words[row][j] = v;
    }
  };
  const T zero = from_f32<T>(0.0f);
  for (int first = 0; first < count; first += kWide) {
    __syncthreads();
    for (int i = threadIdx.x; i < kBm * kWide; i += kThreads) {
      const int row = i / kWide, j = i % kWide;
      put(row, j, first + j < count ? x_at(row, first + j) : zero);
    }
    for (int i = threadIdx.x; i < kBn * kWide; i += kThreads) {
      const int row = kWByRow ? i % kBn : i / kWide, j = kWByRow ? i / kBn : i % kWide;
      put(kBm + row, j, first + j < count ? w_at(row, first + j) : zero);
    }
    __syncthreads();
    if constexpr (sizeof(T) == 2) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t a[4][4], b[2][4];
        load_fragments(memory, half, a, b);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) mma_16bit(f[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1], T{});
        }
      }
    } else {
      for (int j = 0; j < kStepF32; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              f[i][c][e] = fmaf(words[local_row(i, e)][j], words[kBm + local_column(c, e)][j], f[i][c][e]);
            }
          }
        }
      }
    }
  }
}

}  // namespace tile
}  // namespace int8_cuda
