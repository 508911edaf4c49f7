// Thresholds of the relative outlier rules: threshold * median or mean of a row's magnitudes. One block a row.
#include "common/launch.cuh"
#include "prologue/prologue.cuh"
#include "prologue/quantize.cuh"

namespace int8_cuda {
namespace {

constexpr int kThreads = 256;

// threshold * statistic(row). Median: the lower median of the non-zero magnitudes, by a radix selection of four rounds over
// the bits of |x|, which order as the values do. Mean: of all magnitudes, summed in f64.
template <typename T>
__global__ void __launch_bounds__(kThreads) row_thresholds(PrologueParams p) {
  __shared__ uint32_t histogram[256];
  __shared__ uint32_t scratch[kThreads / 32];
  __shared__ double scratch_f64[kThreads / 32];
  __shared__ uint32_t chosen[2];
  pdl_trigger();
  pdl_wait();
  const T *row = static_cast<const T *>(p.x) + static_cast<int64_t>(blockIdx.x) * p.ldx;
  float level = 0.0f;
  if (p.rule == INT8_CUDA_RULE_MEAN) {
    double sum = 0.0;
    for (int64_t k = threadIdx.x; k < p.k; k += kThreads) sum += static_cast<double>(fabsf(to_f32(row[k])));
    sum = block_reduce<kThreads>(sum, [](double a, double b) { return a + b; }, scratch_f64);
    level = static_cast<float>(sum / static_cast<double>(p.k));
  } else {
    uint32_t nonzero = 0, nan = 0;
    for (int64_t k = threadIdx.x; k < p.k; k += kThreads) {
      const uint32_t bits = __float_as_uint(fabsf(to_f32(row[k])));
      nonzero += bits != 0;
      nan |= bits > 0x7f800000u;
    }
    nonzero = block_reduce<kThreads>(nonzero, [](uint32_t a, uint32_t b) { return a + b; }, scratch);
    nan = block_reduce<kThreads>(nan, [](uint32_t a, uint32_t b) { return a | b; }, scratch);
    if (nan == 0 && nonzero > 0) {
      uint32_t rank = (nonzero - 1) / 2, prefix = 0;
      for (int shift = 24; shift >= 0; shift -= 8) {
        __syncthreads();
        histogram[threadIdx.x] = 0;
        __syncthreads();
        const uint32_t above = shift == 24 ? 0u : 0xffffffffu << (shift + 8);
        for (int64_t k = threadIdx.x; k < p.k; k += kThreads) {
          const uint32_t bits = __float_as_uint(fabsf(to_f32(row[k])));
          if (bits != 0 && (bits & above) == prefix) atomicAdd(&histogram[(bits >> shift) & 255u], 1u);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
          uint32_t before = 0, digit = 0;
          while (before + histogram[digit] <= rank) before += histogram[digit++];
          chosen[0] = digit;
          chosen[1] = rank - before;
        }
        __syncthreads();
        prefix |= chosen[0] << shift;
        rank = chosen[1];
      }
      level = __uint_as_float(prefix);
    }
  }
  if (threadIdx.x == 0) {
    // A row of zeros or with NaN has no outliers but +-inf.
    const bool usable = level > 0.0f && level < infinity();
    p.thresholds[blockIdx.x] = usable ? __fmul_rn(p.threshold, level) : infinity();
  }
}

template <typename T>
int8_cuda_status launch_thresholds_typed(const PrologueParams &p, cudaStream_t stream, bool overlap) {
  if (p.rule == INT8_CUDA_RULE_NONE || p.rule == INT8_CUDA_RULE_ABSOLUTE) return INT8_CUDA_OK;
  Launch launch(dim3(static_cast<unsigned>(p.m)), dim3(kThreads), 0, stream, overlap);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, row_thresholds<T>, p));
  return INT8_CUDA_OK;
}

}  // namespace

int8_cuda_status launch_thresholds(const PrologueParams &params, cudaStream_t stream, bool overlap) {
  switch (params.element) {
    case INT8_CUDA_F16: return launch_thresholds_typed<__half>(params, stream, overlap);
    case INT8_CUDA_BF16: return launch_thresholds_typed<__nv_bfloat16>(params, stream, overlap);
    case INT8_CUDA_F32: return launch_thresholds_typed<float>(params, stream, overlap);
    default: return INT8_CUDA_INVALID;
  }
}

}  // namespace int8_cuda
