// Loads of W for kernels bound by its bytes: each is read once, past the L1 cache, the first before the PDL wait.
#pragma once

#include "common/types.cuh"
#include "gemm/gemm.cuh"

namespace int8_cuda {

// Bytes of W that all blocks together prefetch to L2 before the PDL wait: about half of the 50 MB cache.
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

// Bytes of each of W's rows to prefetch to L2 before the PDL wait.
inline int early_bytes_of(const GemmParams &p, bool overlap) {
  const int64_t early = overlap ? kEarlyBytes / round_up(p.n, 32) / 16 * 16 : 0;
  return static_cast<int>(early < p.k ? early : round_up(p.k, 16));
}

}  // namespace int8_cuda
