// wgmma (sm_90a): one warpgroup multiplies a 64-row tile of A with a tile of B, both in shared memory, into registers.
// The integer and the 16-bit form have the same accumulator layout, so the outlier product continues on the converted int8
// result. Both take one array of 32-bit words: with two arrays the compiler keeps both alive and spills.
#pragma once

#include <cstdint>

#include "common/types.cuh"

namespace int8_cuda {

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving other instructions on the accumulators across this point: it does not know when the
// asynchronous products read and write them.
template <int kCount>
__device__ __forceinline__ void pin(int32_t (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

// Shared-memory descriptor of a K-major operand in rows of 128 bytes with the 128-byte swizzle: groups of eight rows are
// 1024 bytes apart. Advancing K by 32 bytes advances the address field by 2.
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t shared_address) {
  return static_cast<uint64_t>((shared_address & 0x3ffffu) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

// The accumulators as operands %0, %1, ... of an instruction, and their names in its text.
#define INT8_D8(i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), "+r"(d[i + 5]), "+r"(d[i + 6]), "+r"(d[i + 7])
#define INT8_D16(i) INT8_D8(i), INT8_D8(i + 8)
#define INT8_D32(i) INT8_D16(i), INT8_D16(i + 16)
#define INT8_D64(i) INT8_D32(i), INT8_D32(i + 32)
#define INT8_D128(i) INT8_D64(i), INT8_D64(i + 64)
#define INT8_NAMES16 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define INT8_NAMES32 \
  INT8_NAMES16 \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define INT8_NAMES64 \
  INT8_NAMES32 \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define INT8_NAMES128 \
  INT8_NAMES64 \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95" \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// d (i32) += a (s8 [64, 32]) * b (s8 [columns, 32])^T; d (the bits of f32) += a (f16|bf16 [64, 16]) * b ([columns, 16])^T.
// count: 32-bit words of d a thread, columns / 2; a_name, b_name: the operands that follow them.
template <int kColumns>
struct Wgmma;

#define INT8_WGMMA_INSTRUCTION(types, columns, count, a_name, b_name, more) \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns types " {" INT8_NAMES##count "}, " a_name ", " b_name more \
               : INT8_D##count(0) \
               : "l"(a), "l"(b))
#define INT8_WGMMA(columns, count, a_name, b_name) \
  template <> \
  struct Wgmma<columns> { \
    static __device__ __forceinline__ void s8(int32_t (&d)[count], uint64_t a, uint64_t b) { \
      INT8_WGMMA_INSTRUCTION("k32.s32.s8.s8", columns, count, a_name, b_name, ", 1;"); \
    } \
    static __device__ __forceinline__ void accumulate(int32_t (&d)[count], uint64_t a, uint64_t b, __half) { \
      INT8_WGMMA_INSTRUCTION("k16.f32.f16.f16", columns, count, a_name, b_name, ", 1, 1, 1, 0, 0;"); \
    } \
    static __device__ __forceinline__ void accumulate(int32_t (&d)[count], uint64_t a, uint64_t b, __nv_bfloat16) { \
      INT8_WGMMA_INSTRUCTION("k16.f32.bf16.bf16", columns, count, a_name, b_name, ", 1, 1, 1, 0, 0;"); \
    } \
  };

INT8_WGMMA(32, 16, "%16", "%17")
INT8_WGMMA(64, 32, "%32", "%33")
INT8_WGMMA(128, 64, "%64", "%65")
INT8_WGMMA(256, 128, "%128", "%129")

#undef INT8_WGMMA
#undef INT8_WGMMA_INSTRUCTION
#undef INT8_NAMES128
#undef INT8_NAMES64
#undef INT8_NAMES32
#undef INT8_NAMES16
#undef INT8_D128
#undef INT8_D64
#undef INT8_D32
#undef INT8_D16
#undef INT8_D8

}  // namespace int8_cuda
