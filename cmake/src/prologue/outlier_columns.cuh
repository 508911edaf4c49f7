// The outlier columns of a mask as a list, in one block's shared memory.
#pragma once

#include "prologue/quantize.cuh"

namespace int8_cuda {

// Outlier columns that are listed in shared memory at a time.
constexpr int kListed = 1024;

// In shared memory: the mask, the number of outlier columns before each word, and a list of columns.
template <int kBlock>
struct OutlierColumns {
  uint32_t *mask, *before;
  int32_t *list;
  uint32_t count;

  __device__ void scan(int words, uint32_t *scratch) {
    // Thread t counts a run of consecutive words; the runs are summed by warp, then over warps.
    const int run = ceil_div(words, kBlock);
    const int begin = min(static_cast<int>(threadIdx.x) * run, words), end = min(begin + run, words);
    uint32_t own = 0;
    for (int i = begin; i < end; ++i) own += __popc(mask[i]);
    uint32_t inclusive = own;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const uint32_t other = __shfl_up_sync(0xffffffffu, inclusive, offset);
      if (threadIdx.x % 32 >= offset) inclusive += other;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 31) scratch[threadIdx.x / 32] = inclusive;
    __syncthreads();
    uint32_t base = 0;
    count = 0;
#pragma unroll
    for (int warp = 0; warp < kBlock / 32; ++warp) {
      if (warp == threadIdx.x / 32) base = count;
      count += scratch[warp];
    }
    uint32_t at = base + inclusive - own;
    for (int i = begin; i < end; ++i) {
      before[i] = at;
      at += __popc(mask[i]);
    }
    __syncthreads();
  }

  // Lists outlier columns first..first+kListed (by rank); returns how many there are.
  __device__ uint32_t make_list(int words, uint32_t first) {
    __syncthreads();
    for (int i = threadIdx.x; i < words; i += kBlock) {
      uint32_t bits = mask[i];
      for (uint32_t rank = before[i]; bits != 0; ++rank, bits &= bits - 1) {
        if (rank >= first && rank - first < kListed) list[rank - first] = i * 32 + __ffs(bits) - 1;
      }
    }
    __syncthreads();
    return min(count - first, static_cast<uint32_t>(kListed));
  }
};

}  // namespace int8_cuda
