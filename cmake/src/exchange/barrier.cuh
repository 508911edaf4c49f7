// A barrier between the blocks of one index on all ranks.
#pragma once

#include "common/types.cuh"
#include "int8_cuda_exchange.h"

namespace int8_cuda {

// A rank's signals: for each block its epoch, and for each of its peers the epoch that the peer has reached.
constexpr int kSignalWords = 16;  // a block: u32 [MAX_RANKS] arrivals, then its epoch; a cache line of its own
constexpr int kSignalBlocks = INT8_CUDA_SIGNAL_BYTES / (kSignalWords * 4);
constexpr int kEpoch = INT8_CUDA_MAX_RANKS;
constexpr uint64_t kTimeout = 10'000'000'000;  // ns

__device__ __forceinline__ uint64_t nanoseconds() {
  uint64_t time;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
  return time;
}

// Waits until this block has arrived on every rank: what the ranks wrote before is visible behind it. All of a block's threads call
// it. A peer that does not come in time is given up, once and for all.
__device__ __forceinline__ void rank_barrier(const int8_cuda_signals &s) {
  __syncthreads();
  if (threadIdx.x < s.ranks) {
    const int peer = threadIdx.x;
    uint32_t *own = static_cast<uint32_t *>(s.of_rank[s.rank]) + blockIdx.x * kSignalWords;
    uint32_t *theirs = static_cast<uint32_t *>(s.of_rank[peer]) + blockIdx.x * kSignalWords;
    const uint32_t epoch = *const_cast<volatile uint32_t *>(own + kEpoch) + 1;
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(theirs + s.rank), "r"(epoch) : "memory");
    const uint64_t start = nanoseconds();
    for (;;) {
      uint32_t arrived;
      asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(arrived) : "l"(own + peer) : "memory");
      if (static_cast<int32_t>(arrived - epoch) >= 0) break;
      if (*const_cast<volatile uint32_t *>(s.failed) != 0) break;
      if (nanoseconds() - start > kTimeout) {
        *const_cast<volatile uint32_t *>(s.failed) = 1;
        break;
      }
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) static_cast<uint32_t *>(s.of_rank[s.rank])[blockIdx.x * kSignalWords + kEpoch] += 1;
  __syncthreads();
}

// Memory of a peer, past the caches that do not see its writes.
__device__ __forceinline__ float4 load_of_peer(const float4 *at) {
  float4 v;
  asm volatile("ld.relaxed.sys.global.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(at) : "memory");
  return v;
}
__device__ __forceinline__ float2 load_of_peer(const float2 *at) {
  float2 v;
  asm volatile("ld.relaxed.sys.global.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(at) : "memory");
  return v;
}
__device__ __forceinline__ float load_of_peer(const float *at) {
  float v;
  asm volatile("ld.relaxed.sys.global.f32 %0, [%1];" : "=f"(v) : "l"(at) : "memory");
  return v;
}

}  // namespace int8_cuda
