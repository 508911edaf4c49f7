// y (+)= f(x): norms of rows or of runs of a row, and elementwise functions.
#include "common/launch.cuh"
#include "common/rows.cuh"
#include "prologue/activation.cuh"
#include "prologue/norm.cuh"
#include "prologue/transform.cuh"

namespace int8_cuda {
namespace {

constexpr int kThreads = 256;
// Runs of 8 columns of a row that a thread keeps in registers.
constexpr int kNormRuns = 5;
// A warp normalises runs of up to 8 columns a lane: heads.
constexpr int kWarpColumns = 32 * kRun, kWarps = 4;

using Params = int8_cuda_transform_params;

// ---- Elementwise: a thread has eight columns. ----

template <typename T>
__global__ void __launch_bounds__(kThreads) map_rows(const __grid_constant__ Params p, int64_t width, bool vector) {
  pdl_trigger();
  pdl_wait();
  const int64_t row = blockIdx.x, column = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kRun, count = width - column;
  if (count <= 0) return;
  const T *x = static_cast<const T *>(p.x) + row * p.ldx + column;
  const int64_t y_index = row * p.ldy + column;
  const bool accumulate = p.store == INT8_CUDA_ACCUMULATE;
  float v[kRun], second[kRun], before[kRun];
  load_run(x, count, vector, v);
  if (p.transform.function == INT8_CUDA_GATED) load_run(x + p.k, count, vector, second);
  if (accumulate) load_run(p.y, y_index, p.y_element, count, vector, before);
  switch (p.transform.function) {
    case INT8_CUDA_ACTIVATION:
#pragma unroll
      for (int i = 0; i < kRun; ++i) v[i] = activate(v[i], p.transform.activation);
      break;
    case INT8_CUDA_GATED:
#pragma unroll
      for (int i = 0; i < kRun; ++i) v[i] = activate(v[i], p.transform.activation) * second[i];
      break;
    case INT8_CUDA_SCALE: {
      const float factor = p.transform.factor, cap = p.transform.cap;
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        v[i] *= factor;
        if (cap > 0.0f) v[i] = cap * tanhf(v[i] / cap);
      }
      break;
    }
    default: break;
  }
  if (accumulate) {
#pragma unroll
    for (int i = 0; i < kRun; ++i) v[i] += before[i];
  }
  store_run(p.y, y_index, p.y_element, count, vector, v);
}

// ---- Norms: a warp or a block has k columns. ----

// The sum over the warp or the block, the same in every thread.
template <bool kWarp>
__device__ __forceinline__ float reduce_sum(float v) {
  v = warp_sum(v);
  if constexpr (!kWarp) {
    __shared__ float scratch[kNormThreads / 32];
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    v = scratch[0];
    for (int i = 1; i < static_cast<int>(blockDim.x) / 32; ++i) v += scratch[i];
  }
  return v;
}

// kRuns: runs of eight columns a thread keeps in registers; 0: x is read again after each reduction.
template <typename T, bool kWarp, int kRuns>
__global__ void __launch_bounds__(kWarp ? kWarps * 32 : kNormThreads) norm_rows(const __grid_constant__ Params p, bool vector) {
  pdl_trigger();
  const int64_t unit = kWarp ? static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32 : blockIdx.x;
  if (unit >= p.rows * p.groups) return;
  const int first = (kWarp ? threadIdx.x % 32 : threadIdx.x) * kRun, step = (kWarp ? 32 : blockDim.x) * kRun;
  const int64_t row = p.groups == 1 ? unit : unit / p.groups, start = p.groups == 1 ? 0 : unit % p.groups * p.k;
  const T *x = static_cast<const T *>(p.x) + row * p.ldx + start;
  const int64_t y_start = row * p.ldy + start;
  const int k = static_cast<int>(p.k);
  const bool accumulate = p.store == INT8_CUDA_ACCUMULATE, centred = p.transform.function == INT8_CUDA_LAYER_NORM;
  const float *bias_from = centred ? p.transform.bias : nullptr;
  float gain[kRun], bias[kRun] = {};
  auto load_gain = [&](int column) {
    load_run(p.transform.gain + column, k - column, vector, gain);
    if (bias_from != nullptr) load_run(bias_from + column, k - column, vector, bias);
  };
  if constexpr (kRuns == 1) {
    if (first < k) load_gain(first);  // weights: before the wait
  }
  pdl_wait();

  float mean = 0.0f, squares = 0.0f;
  if constexpr (kRuns > 0) {
    float v[kRuns][kRun] = {}, before[kRuns][kRun];
    if (vector) {
      RawRun<T> raw[kRuns];
#pragma unroll
      for (int c = 0; c < kRuns; ++c) {
        if (first + c * step < k) raw[c] = load_raw(x + first + c * step);
      }
#pragma unroll
      for (int c = 0; c < kRuns; ++c) {
        if (first + c * step < k) convert_run(raw[c], v[c]);
      }
    } else {
#pragma unroll
      for (int c = 0; c < kRuns; ++c) load_run(x + first + c * step, k - first - c * step, false, v[c]);
    }
    if (accumulate) {
#pragma unroll
      for (int c = 0; c < kRuns; ++c) {
        const int column = first + c * step;
        if (column < k) load_run(p.y, y_start + column, p.y_element, k - column, vector, before[c]);
      }
    }
    if (centred) {
#pragma unroll
      for (int c = 0; c < kRuns; ++c) {
#pragma unroll
        for (int i = 0; i < kRun; ++i) mean += v[c][i];
      }
      mean = reduce_sum<kWarp>(mean) / static_cast<float>(k);
    }
#pragma unroll
    for (int c = 0; c < kRuns; ++c) {
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        const float d = first + c * step + i < k ? v[c][i] - mean : 0.0f;
        squares = fmaf(d, d, squares);
      }
    }
    const float factor = norm_factor(reduce_sum<kWarp>(squares), k, p.transform.eps);
#pragma unroll
    for (int c = 0; c < kRuns; ++c) {
      const int column = first + c * step;
      if (column >= k) break;
      if constexpr (kRuns > 1) load_gain(column);
      normalise(v[c], mean, factor, gain, bias);
      if (accumulate) {
#pragma unroll
        for (int i = 0; i < kRun; ++i) v[c][i] += before[c][i];
      }
      store_run(p.y, y_start + column, p.y_element, k - column, vector, v[c]);
    }
  } else {
    float v[kRun];
    if (centred) {
      for (int column = first; column < k; column += step) {
        load_run(x + column, k - column, vector, v);
#pragma unroll
        for (int i = 0; i < kRun; ++i) mean += v[i];
      }
      mean = reduce_sum<kWarp>(mean) / static_cast<float>(k);
    }
    for (int column = first; column < k; column += step) {
      load_run(x + column, k - column, vector, v);
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        const float d = column + i < k ? v[i] - mean : 0.0f;
        squares = fmaf(d, d, squares);
      }
    }
    const float factor = norm_factor(reduce_sum<kWarp>(squares), k, p.transform.eps);
    for (int column = first; column < k; column += step) {
      load_run(x + column, k - column, vector, v);
      load_gain(column);
      normalise(v, mean, factor, gain, bias);
      if (accumulate) {
        float before[kRun];
        load_run(p.y, y_start + column, p.y_element, k - column, vector, before);
#pragma unroll
        for (int i = 0; i < kRun; ++i) v[i] += before[i];
      }
      store_run(p.y, y_start + column, p.y_element, k - column, vector, v);
    }
  }
}

template <typename T>
int8_cuda_status launch_map(const Params &p, bool overlap) {
  const bool gated = p.transform.function == INT8_CUDA_GATED;
  const int64_t width = p.groups * p.k, runs = ceil_div<int64_t>(width, kRun);
  const bool vector = width % kRun == 0 && rows_aligned(p.x, p.ldx, p.x_element) && rows_aligned(p.y, p.ldy, p.y_element);
  const int threads = runs < kThreads ? static_cast<int>(round_up<int64_t>(runs, 32)) : kThreads;
  const int64_t blocks = ceil_div<int64_t>(runs, threads);
  if (blocks > 65535 || (gated && p.groups != 1)) return INT8_CUDA_INVALID;
  Launch launch(dim3(static_cast<unsigned>(p.rows), static_cast<unsigned>(blocks)), dim3(threads), 0,
                static_cast<cudaStream_t>(p.stream), overlap);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, map_rows<T>, p, width, vector));
  return INT8_CUDA_OK;
}

template <typename T, bool kWarp, int kRuns>
int8_cuda_status launch_norm_as(const Params &p, int threads, bool overlap) {
  const bool vector = p.k % kRun == 0 && rows_aligned(p.x, p.ldx, p.x_element) && rows_aligned(p.y, p.ldy, p.y_element) &&
                      rows_aligned(p.transform.gain, 0, INT8_CUDA_F32) && rows_aligned(p.transform.bias, 0, INT8_CUDA_F32);
  const int64_t units = p.rows * p.groups, blocks = kWarp ? ceil_div<int64_t>(units, kWarps) : units;
  if (blocks > INT32_MAX) return INT8_CUDA_UNSUPPORTED;
  Launch launch(dim3(static_cast<unsigned>(blocks)), dim3(threads), 0, static_cast<cudaStream_t>(p.stream), overlap);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, norm_rows<T, kWarp, kRuns>, p, vector));
  return INT8_CUDA_OK;
}

template <typename T>
int8_cuda_status launch_typed(const Params &p, bool overlap) {
  const bool norm = p.transform.function == INT8_CUDA_RMS_NORM || p.transform.function == INT8_CUDA_LAYER_NORM;
  if (!norm) return launch_map<T>(p, overlap);
  if (p.k <= kWarpColumns) return launch_norm_as<T, true, 1>(p, kWarps * 32, overlap);
  const int64_t wanted = round_up<int64_t>(ceil_div<int64_t>(p.k, kRun), 32);
  const int threads = wanted < kNormThreads ? static_cast<int>(wanted) : kNormThreads;
  if (p.k <= threads * kRun) return launch_norm_as<T, false, 1>(p, threads, overlap);
  if (p.k <= threads * kRun * kNormRuns) return launch_norm_as<T, false, kNormRuns>(p, threads, overlap);
  return launch_norm_as<T, false, 0>(p, threads, overlap);
}

}  // namespace

int8_cuda_status launch_transform(const int8_cuda_transform_params &p, bool overlap) {
  switch (p.x_element) {
    case INT8_CUDA_F16: return launch_typed<__half>(p, overlap);
    case INT8_CUDA_BF16: return launch_typed<__nv_bfloat16>(p, overlap);
    case INT8_CUDA_F32: return launch_typed<float>(p, overlap);
    default: return INT8_CUDA_INVALID;
  }
}

}  // namespace int8_cuda
