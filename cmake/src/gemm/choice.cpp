// Which GEMM computes a shape: the choice table, measured at the shapes of docs/benchmarks/gpu.md and continued between them.
#include "gemm/gemm.cuh"

namespace int8_cuda {

int choose_algorithm(int algorithm, const GemmShape &s, bool fused, const Device &device) {
  if (algorithm != INT8_CUDA_AUTO) return algorithm;
  if (fused) {
    if (gemv_tma_supports(s.m, s.n, s.k, s.element, device)) return INT8_CUDA_GEMV_TMA;
    // M = 1: below 64 MB of weights a second launch costs more than quantising x in every block.
    if (s.m == 1 && s.element != INT8_CUDA_F32 && s.k <= kGemvInner && s.n * s.k <= 64 << 20) return INT8_CUDA_GEMV;
  }
  const bool wgmma = device.major == 9 && s.element != INT8_CUDA_F32 && s.k > 0;
  const auto tiles = [&](int rows, int columns) { return ceil_div<int64_t>(s.m, rows) * ceil_div<int64_t>(s.n, columns); };
  if (!wgmma) {
    if (s.m <= kSmallM) return INT8_CUDA_SMALL_M;
    if (s.element == INT8_CUDA_F32 || s.k == 0) return INT8_CUDA_MMA;
    // A multiprocessor has at least two blocks of the smaller tiles at once.
    if (tiles(64, 64) <= device.multiprocessors) return INT8_CUDA_MMA_64X64;
    if (tiles(64, 128) <= 2 * device.multiprocessors) return INT8_CUDA_MMA_64X128;
    // The largest tiles load least, but their last wave must be nearly full.
    const int64_t large = tiles(128, 256), waves = ceil_div<int64_t>(large, device.multiprocessors);
    return waves > 1 && 10 * large >= 9 * waves * device.multiprocessors ? INT8_CUDA_MMA_128X256 : INT8_CUDA_MMA_128X128;
  }
  if (s.m <= 4 && s.k <= 8192) return INT8_CUDA_SMALL_M;
  // The smallest tiles of which no multiprocessor has two: as many multiprocessors as possible have one.
  const auto at_once = [&](int rows, int columns) { return tiles(rows, columns) <= device.multiprocessors; };
  if (at_once(64, 32)) return INT8_CUDA_WGMMA_64X32;
  if (at_once(64, 64)) return INT8_CUDA_WGMMA_64X64;
  if (s.m <= 64 || at_once(64, 128)) return INT8_CUDA_WGMMA_64X128;
  // One cluster along M reads every weight once.
  const int64_t large = 2 * ceil_div<int64_t>(s.n, 256);
  if (s.m > 128 && s.m <= 256 && 3 * large >= 2 * device.multiprocessors) return INT8_CUDA_WGMMA_128X256;
  // Smaller tiles hide their epilogues but load more, which decides once the power limit is reached.
  return at_once(128, 128) || s.m * s.k < 4096 * 4096 ? INT8_CUDA_WGMMA_128X128 : INT8_CUDA_WGMMA_128X256;
}

int8_cuda_status check_algorithm(int algorithm, const GemmShape &s, bool fused, const Device &device) {
  const Kind kind = kind_of(algorithm);
  if (kind == Kind::NONE || kind == Kind::PRODUCT) return INT8_CUDA_INVALID;
  if (is_gemv(algorithm)) {
    if (!fused || s.m > 1 || s.element == INT8_CUDA_F32 || s.k > kGemvInner) return INT8_CUDA_UNSUPPORTED;
    const bool empty = s.m == 0 || s.n == 0;
    if (algorithm == INT8_CUDA_GEMV_TMA && !empty && !gemv_tma_supports(s.m, s.n, s.k, s.element, device)) return INT8_CUDA_UNSUPPORTED;
  }
  if (device.major < 8 || (kind == Kind::WGMMA && device.major != 9)) return INT8_CUDA_UNSUPPORTED;
  if (is_form(algorithm) && (s.element == INT8_CUDA_F32 || s.k == 0)) return INT8_CUDA_UNSUPPORTED;
  return algorithm == INT8_CUDA_SMALL_M && s.m > kSmallM ? INT8_CUDA_UNSUPPORTED : INT8_CUDA_OK;
}

int8_cuda_status launch_gemm(const GemmParams &p, int element, int algorithm, cudaStream_t stream, bool overlap) {
  if (algorithm == INT8_CUDA_SMALL_M) return launch_small_m(p, element, stream, overlap);
  if (algorithm == INT8_CUDA_MMA) return launch_mma(p, element, stream, overlap);
  INT8_CUDA_PASS(launch_form(p, element, algorithm, stream, overlap));
  if (p.outlier_count == nullptr || p.outlier_ld >= p.k) return INT8_CUDA_OK;
  GemmParams beyond = p;
  beyond.only_beyond_capacity = 1;
  return launch_mma(beyond, element, stream, overlap);
}

}  // namespace int8_cuda
