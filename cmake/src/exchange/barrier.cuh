// A barrier between the blocks of one index on all ranks, and packets: numbers that arrive with the mark of their exchange, so that a
// rank waits for nothing but what it needs.
#pragma once

#include "common/types.cuh"
#include "int8_cuda_exchange.h"

namespace int8_cuda {

// A rank's signals: for each block its epoch, and for each of its peers the epoch that the peer has reached.
constexpr int kSignalWords = 16;  // a block: u32 [MAX_RANKS] arrivals, then its epochs; a cache line of its own
constexpr int kSignalBlocks = INT8_CUDA_SIGNAL_BYTES / (kSignalWords * 4);
constexpr int kEpoch = INT8_CUDA_MAX_RANKS, kSumEpoch = kEpoch + 1, kRangeEpoch = kEpoch + 2;
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

// Packets lie where they are received, those of every second exchange in the same place: a rank that sends the next but one has
// received all of the next, which a peer sends after it has read this one's.
constexpr int kRangeRows = 16, kRangeParts = 32;
static_assert(kRangeRows * kRangeParts * 2 <= 1024, "room for packets of ranges");
constexpr int64_t kReceived = INT8_CUDA_PACKETS + 1024;

// Where rank `to` receives the packets of rank `from`.
__device__ __forceinline__ uint2 *packets(const int8_cuda_signals &s, int to, int from, uint32_t epoch) {
  return static_cast<uint2 *>(s.receive[to]) + ((epoch & 1u) * s.ranks + from) * kReceived;
}
__device__ __forceinline__ void send(uint2 *to, float first, float second, uint32_t epoch) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %2};" ::"l"(to), "r"(__float_as_uint(first)), "r"(epoch), "r"(__float_as_uint(second)) : "memory");
}
__device__ __forceinline__ float2 receive(const int8_cuda_signals &s, const uint2 *at, uint32_t epoch) {
  uint32_t first, second, mark, other;
  uint64_t start = 0;
  for (int tries = 0;; ++tries) {
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(first), "=r"(mark), "=r"(second), "=r"(other) : "l"(at) : "memory");
    if (mark == epoch && other == epoch) break;
    if (tries % 256 != 255) continue;
    if (start == 0) start = nanoseconds();
    if (*const_cast<volatile uint32_t *>(s.failed) != 0) break;
    if (nanoseconds() - start > kTimeout) {
      *const_cast<volatile uint32_t *>(s.failed) = 1;
      break;
    }
  }
  return make_float2(__uint_as_float(first), __uint_as_float(second));
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
