/* How the int8 GEMM is computed: one row an algorithm. From it follow the enumerators of int8_cuda.h, the constants and the
 * enumeration in Rust (build.rs of int8-cuda-sys), the translation units of the WGMMA forms (CMakeLists.txt) and their launch.
 * A new form is a row here and a condition in gemm/choice.cpp.
 *
 * X(name, number, name in Rust, kind, "limits", further columns of the kind). Kinds:
 *   GEMM    int8_cuda_gemm and int8_cuda_linear
 *   WGMMA   likewise, a form of the kernel in gemm/wgmma.cuh (sm_90a, f16 and bf16): rows and columns of a tile, blocks of a
 *           cluster (along M, sharing weights), stages, ping-pong schedule, k-steps whose weights are loaded before the PDL wait
 *   MMA     likewise, a form of the kernel in gemm/mma.cuh (sm_80 and later, f16 and bf16): rows and columns of a tile, warps along
 *           each, stages, blocks of a multiprocessor
 *   FUSED   int8_cuda_linear alone: M = 1, x f16|bf16 and 16-byte aligned, the prologue in the same kernel, no intermediate
 *           results in the workspace
 *   PRODUCT int8_cuda_product alone
 *
 * Stages of the forms: as many as fit into 227 KB beside the output tile. Small tiles, bound by memory, need 120 to 144 KB in
 * flight; up to K of about 6000 their blocks fit beside those of the single-pass prologue and start early, with weights for all
 * stages. Large tiles' early weights delay the loads that are needed first: 1024x4096x4096 takes 1.4 us longer with six. */
#ifndef INT8_CUDA_ALGORITHMS_H
#define INT8_CUDA_ALGORITHMS_H

/* clang-format off */
#define INT8_CUDA_ALGORITHMS(X) \
  X(SMALL_M, 1, SmallM, GEMM, "`m ≤ 32`, weights read once into registers, `mma.sync` (sm_80 and later)") \
  X(MMA, 2, Mma, GEMM, "128×128 tiles, `mma.sync` (sm_80 and later): any size and type") \
  X(WGMMA_128X256, 3, Wgmma128x256, WGMMA, "128×256 tiles in clusters of two, `wgmma` (sm_90a), f16 and bf16", 128, 256, 2, 4, false, 2) \
  X(WGMMA_128X128, 4, Wgmma128x128, WGMMA, "128×128 tiles, ping-pong schedule, `wgmma` (sm_90a), f16 and bf16", 128, 128, 1, 6, true, 2) \
  X(WGMMA_64X128, 5, Wgmma64x128, WGMMA, "64×128 tiles for few rows, `wgmma` (sm_90a), f16 and bf16", 64, 128, 1, 5, false, 5) \
  X(WGMMA_64X64, 9, Wgmma64x64, WGMMA, "64×64 tiles for few rows and smaller `n`, `wgmma` (sm_90a), f16 and bf16", 64, 64, 1, 8, false, 8) \
  X(WGMMA_64X32, 10, Wgmma64x32, WGMMA, "64×32 tiles for few rows and smaller `n` still, `wgmma` (sm_90a), f16 and bf16", 64, 32, 1, 12, false, 12) \
  X(MMA_128X256, 11, Mma128x256, MMA, "128×256 tiles, `mma.sync` (sm_80 and later), f16 and bf16", 128, 256, 2, 4, 4, 1) \
  X(MMA_128X128, 12, Mma128x128, MMA, "128×128 tiles, `mma.sync` (sm_80 and later), f16 and bf16", 128, 128, 2, 2, 3, 2) \
  X(MMA_64X128, 13, Mma64x128, MMA, "64×128 tiles, `mma.sync` (sm_80 and later), f16 and bf16", 64, 128, 2, 2, 4, 2) \
  X(MMA_64X64, 14, Mma64x64, MMA, "64×64 tiles for few rows and smaller `n`, `mma.sync` (sm_80 and later), f16 and bf16", 64, 64, 2, 2, 8, 2) \
  X(GEMV, 7, Gemv, FUSED, "`m = 1`, f16 and bf16, `k ≤ 65536` (sm_80 and later), the prologue in the same kernel: for `LinearPlan` alone") \
  X(GEMV_TMA, 8, GemvTma, FUSED, "as `Gemv`, weights through shared memory by TMA loads (sm_90), `k ≤ 32768` a multiple of 128") \
  X(CUBLASLT, 6, CublasLt, PRODUCT, "cuBLASLt's i8·i8→i32, for `int8_product` alone, if the library is found")
/* clang-format on */

#endif
