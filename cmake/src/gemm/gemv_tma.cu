// GEMV_TMA, M = 1 on sm_90, prologue inside: bound by the bytes of W, which TMA loads stream through shared memory.
//
// One block a multiprocessor takes groups of 16 rows of W in turn. It uses less than half of the shared memory and registers,
// so that the next layer's block runs beside it and fills its stages meanwhile (no kernel writes weights), and memory is never
// idle between layers. Every block quantises x for itself, which costs less than waiting for another kernel. One warp loads;
// the eight multiplying warps partition K.
#include "common/launch.cuh"
#include "common/tensor_map.cuh"
#include "common/tma.cuh"
#include "epilogue/store.cuh"
#include "epilogue/zero_point.cuh"
#include "gemm/gemm.cuh"
#include "gemm/mma_sync.cuh"
#include "common/rows.cuh"
#include "prologue/activation.cuh"
#include "prologue/quantize.cuh"

namespace int8_cuda {
namespace {

constexpr int kWarps = 8, kMultiplying = kWarps * 32, kThreads = kMultiplying + 32;
constexpr int kN = 16;
// A warp takes 128 bytes of K, the widest row of the swizzle; a stage is one TMA load of 16 rows for all eight.
constexpr int kWindow = 128, kStep = kWarps * kWindow;
constexpr int kWindowBytes = kN * kWindow, kStageBytes = kN * kStep;
constexpr int kMaxStages = 8;
// Shared memory of a block: two fit on a multiprocessor.
constexpr int kBytes = 112 * 1024;
// Bytes of W that all blocks together prefetch to L2 before the PDL wait, beside their stages: as many as memory delivers while
// x is quantised. More evicts data in use.
constexpr int64_t kEarlyBytes = 8 << 20;

struct GemvShape {
  int stages, early_steps;
};

// Shared memory behind the stages.
struct alignas(16) Tail {
  int32_t partial[kWarps][kN];
  float outlier_partial[kWarps][kN];
  uint64_t full[kMaxStages], empty[kMaxStages];
  uint32_t scratch[kWarps];
  float scratch_f32[kWarps];
  int32_t scratch_i32[kWarps];
  // Followed by the codes, i8 [round_up(k, kStep)], the outlier mask, 1 bit [k], and the outliers, T [k].
};

__device__ __forceinline__ void multiplying_sync() { named_barrier(1, kMultiplying); }

__device__ __forceinline__ void prefetch_to_l2(const float *address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

template <typename V, typename Op>
__device__ __forceinline__ V warps_reduce(V v, Op op, V *scratch) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v = op(v, __shfl_xor_sync(0xffffffffu, v, offset));
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  multiplying_sync();
  v = scratch[0];
#pragma unroll
  for (int i = 1; i < kWarps; ++i) v = op(v, scratch[i]);
  return v;
}

// Chunks of an f32 row that a thread keeps in registers while it is normalised.
constexpr int kWideChunks = 5;

// The chunks of this thread of a row x of type T: itself, act(x) or act(x[..k]) * x[k..], rounded to T. All loads of a batch are
// in flight before the first is used: the row was written by the kernel before, and takes microseconds to arrive while weights
// stream.
template <typename T, int kCached>
__device__ __forceinline__ void mapped_chunks(const int8_cuda_transform &f, const T *x, int k, uint4 (&cache)[kCached]) {
  const int chunks = k / kChunk;
  const auto chunk_of = [](int c) { return static_cast<int>(threadIdx.x) + c * kMultiplying; };
#pragma unroll
  for (int c = 0; c < kCached; ++c) {
    if (chunk_of(c) < chunks) cache[c] = *reinterpret_cast<const uint4 *>(x + chunk_of(c) * kChunk);
  }
  if (f.function == INT8_CUDA_IDENTITY) return;
  const auto map = [&](uint4 &raw, const uint4 *other) {
    T *v = reinterpret_cast<T *>(&raw);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      float value = activate(to_f32(v[i]), f.activation);
      if (other != nullptr) value *= to_f32(reinterpret_cast<const T *>(other)[i]);
      v[i] = from_f32<T>(value);
    }
  };
  if (f.function != INT8_CUDA_GATED) {
#pragma unroll
    for (int c = 0; c < kCached; ++c) {
      if (chunk_of(c) < chunks) map(cache[c], nullptr);
    }
    return;
  }
  constexpr int kBatch = 4;
  static_assert(kCached % kBatch == 0, "whole batches");
#pragma unroll
  for (int first = 0; first < kCached; first += kBatch) {
    uint4 factors[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (chunk_of(first + b) < chunks) factors[b] = *reinterpret_cast<const uint4 *>(x + k + chunk_of(first + b) * kChunk);
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (chunk_of(first + b) < chunks) map(cache[first + b], &factors[b]);
    }
  }
}

// The chunks of this thread of an f32 row x, normalised and rounded to T. `sum` adds up over the multiplying warps.
template <typename T, int kCached, typename Sum>
__device__ __forceinline__ void normed_chunks(const int8_cuda_transform &f, const float *x, int k, Sum sum, uint4 (&cache)[kCached]) {
  static_assert(kChunk == kRun, "a chunk is a run");
  const int chunks = k / kChunk;
  float v[kWideChunks][kChunk] = {};
#pragma unroll
  for (int c = 0; c < kWideChunks; ++c) {
    const int chunk = static_cast<int>(threadIdx.x) + c * kMultiplying;
    if (chunk < chunks) load_run(x + chunk * kChunk, kChunk, true, v[c]);
  }
  float mean = 0.0f, factor = 1.0f;
  const bool centred = f.function == INT8_CUDA_LAYER_NORM, normed = f.function != INT8_CUDA_IDENTITY;
  if (centred) {
#pragma unroll
    for (int c = 0; c < kWideChunks; ++c) {
#pragma unroll
      for (int i = 0; i < kChunk; ++i) mean += v[c][i];
    }
    mean = sum(mean) / static_cast<float>(k);
  }
  if (normed) {
    float squares = 0.0f;
#pragma unroll
    for (int c = 0; c < kWideChunks; ++c) {
      if (static_cast<int>(threadIdx.x) + c * kMultiplying >= chunks) break;
#pragma unroll
      for (int i = 0; i < kChunk; ++i) squares = fmaf(v[c][i] - mean, v[c][i] - mean, squares);
    }
    factor = 1.0f / sqrtf(sum(squares) / static_cast<float>(k) + f.eps);
  }
#pragma unroll
  for (int c = 0; c < kWideChunks; ++c) {
    const int chunk = static_cast<int>(threadIdx.x) + c * kMultiplying;
    if (chunk >= chunks) break;
    if (normed) {
      float gain[kRun], bias[kRun] = {};
      load_run(f.gain + chunk * kChunk, kChunk, true, gain);
      if (f.bias != nullptr && centred) load_run(f.bias + chunk * kChunk, kChunk, true, bias);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) v[c][i] = (v[c][i] - mean) * factor * gain[i] + bias[i];
    }
    T *rounded = reinterpret_cast<T *>(&cache[c]);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) rounded[i] = from_f32<T>(v[c][i]);
  }
}

// kWide: x is f32, possibly normalised; else of type T, possibly activated.
template <typename T, bool kWide>
__global__ void __launch_bounds__(kThreads, 2)
    gemv_tma(const __grid_constant__ CUtensorMap map_w, const __grid_constant__ GemmParams p, const GemvShape shape, int zero_point) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(1024) uint8_t stages[];  // the swizzle counts from multiples of 1024 bytes
  if (shared_address(stages) % 1024 != 0) __trap();
  const int steps = ceil_div(p.k, kStep), chunks = p.k / kChunk, groups = ceil_div(p.n, kN);
  Tail &tail = *reinterpret_cast<Tail *>(stages + shape.stages * kStageBytes);
  uint8_t *codes = reinterpret_cast<uint8_t *>(&tail + 1), *mask_bytes = codes + steps * kStep;  // a byte a chunk
  T *kept = reinterpret_cast<T *>(mask_bytes + p.k / kChunk);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, part = lane % 4;
  const bool decompose = p.outlier_columns != nullptr;

  if (threadIdx.x == 0) {
    for (int s = 0; s < shape.stages; ++s) {
      mbarrier_init(&tail.full[s], 1);
      mbarrier_init(&tail.empty[s], kWarps);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  pdl_trigger();

  if (warp == kWarps) {
    int stage = 0;
    uint32_t phase = 0;
    if (lane != 0) return;
    // Weights are read once: they leave the L2 cache before the activations do.
    const uint64_t once = evict_first_policy();
    int done = 0;
    for (int g = blockIdx.x; g < groups; g += gridDim.x) {
      for (int step = 0; step < steps; ++step, ++done) {
        if (done == shape.stages) {
          // The stages are full: the next steps are prefetched to L2.
          int at = step, ahead = g;
          for (int i = 0; i < shape.early_steps && ahead < groups; ++i) {
            tma_prefetch_3d(map_w, 0, ahead * kN, at * kWarps, once);
            if (++at == steps) {
              at = 0;
              ahead += gridDim.x;
            }
          }
        }
        mbarrier_wait(&tail.empty[stage], phase ^ 1);
        mbarrier_expect(&tail.full[stage], kStageBytes);
        tma_load_3d(stages + stage * kStageBytes, map_w, 0, g * kN, step * kWarps, &tail.full[stage], once);
        if (++stage == shape.stages) {
          stage = 0;
          phase ^= 1;
        }
      }
    }
    return;
  }

  if constexpr (kWide) {
    // Weights, too: 128 bytes a thread reach all of gain and bias.
    const int first = static_cast<int>(threadIdx.x) * 32;
    for (int i = first; i < p.k; i += kMultiplying * 32) {
      if (p.transform.gain != nullptr) prefetch_to_l2(p.transform.gain + i);
      if (p.transform.bias != nullptr) prefetch_to_l2(p.transform.bias + i);
    }
  }
  pdl_wait();
  constexpr int kCached = kGemvTmaInner / kChunk / kMultiplying;
  const float threshold = !decompose ? infinity() : p.thresholds != nullptr ? p.thresholds[0] : p.threshold;
  const uint32_t floor = Packed<T>::at_least(threshold);
  uint4 cache[kCached];
  uint32_t skipped[kCached];
#pragma unroll
  for (int c = 0; c < kCached; ++c) {
    cache[c] = make_uint4(0, 0, 0, 0);
  }
  if constexpr (!kWide) mapped_chunks(p.transform, static_cast<const T *>(p.x), p.k, cache);
  if constexpr (kWide) {
    const auto sum = [&](float v) {
      multiplying_sync();
      return warps_reduce(v, [](float a, float b) { return a + b; }, tail.scratch_f32);
    };
    normed_chunks<T>(p.transform, static_cast<const float *>(p.x), p.k, sum, cache);
  }
  PackedRange<T> packed;
  uint32_t found = 0;
#pragma unroll
  for (int c = 0; c < kCached; ++c) {
    const T(&v)[kChunk] = reinterpret_cast<const T(&)[kChunk]>(cache[c]);
    const uint32_t skip = decompose ? hits_of<T, true>(v, threshold, floor) : 0u;
    skipped[c] = skip;
    found |= skip;
#pragma unroll
    for (int i = 0; i < kChunk / 2; ++i) {
      uint32_t word = words_of(v)[i];
      if (skip != 0) word &= (skip >> (2 * i) & 1u ? 0u : 0xffffu) | (skip >> (2 * i) & 2u ? 0u : 0xffff0000u);
      packed.add(word, zero_point != 0);
    }
  }
  // The largest magnitude in the low bits, and above them whether there are outliers.
  const uint32_t both = warps_reduce(larger_of_pair(packed.most) | (found != 0 ? 0x10000u : 0u),
                                     [](uint32_t a, uint32_t b) { return max(a & 0xffffu, b & 0xffffu) | ((a | b) & 0x10000u); },
                                     tail.scratch);
  const uint32_t most = both & 0xffffu;
  Range range;
  range.infinite = most >= Packed<T>::kInfinity;
  range.high = Packed<T>::unpack(most).x;
  if (zero_point) {
    const float2 low = Packed<T>::unpack(packed.low), high = Packed<T>::unpack(packed.high);
    range.low = warps_reduce(fminf(low.x, low.y), [](float a, float b) { return fminf(a, b); }, tail.scratch_f32);
    multiplying_sync();
    range.high = warps_reduce(fmaxf(high.x, high.y), [](float a, float b) { return fmaxf(a, b); }, tail.scratch_f32);
  }
  int32_t row_sum = 0;
  const QuantizationParameters parameters(range, zero_point ? INT8_CUDA_ZEROPOINT : INT8_CUDA_ABSMAX);
  const bool any = (both & 0x10000u) != 0;
#pragma unroll
  for (int c = 0; c < kCached; ++c) {
    const int chunk = static_cast<int>(threadIdx.x) + c * kMultiplying;
    if (chunk * kChunk >= steps * kStep) break;
    uint32_t q[2] = {0, 0};
    if (chunk < chunks) {
      encode_chunk<T, true>(reinterpret_cast<const T(&)[kChunk]>(cache[c]), parameters, zero_point != 0, skipped[c],
                            p.k - static_cast<int64_t>(chunk) * kChunk, q);
      row_sum = __dp4a(static_cast<int>(q[0]), 0x01010101, __dp4a(static_cast<int>(q[1]), 0x01010101, row_sum));
      if (any) mask_bytes[chunk] = static_cast<uint8_t>(skipped[c]);
      if (skipped[c] != 0) *reinterpret_cast<uint4 *>(kept + chunk * kChunk) = cache[c];
    }
    *reinterpret_cast<uint2 *>(codes + chunk * kChunk) = make_uint2(q[0], q[1]);
  }
  if (p.column_zeros != nullptr) row_sum = warps_reduce(row_sum, [](int32_t a, int32_t b) { return a + b; }, tail.scratch_i32);
  multiplying_sync();
  const uint8_t *x_codes = codes + warp * kWindow + part * 32;
  int stage = 0;
  uint32_t phase = 0;
  for (int g = blockIdx.x; g < groups; g += gridDim.x) {
    const int first_n = g * kN;
    const int n = first_n + static_cast<int>(threadIdx.x) % kN;
    const bool writes = threadIdx.x < kN && n < p.n;
    // Loaded here, used at the end.
    const float column_scale = writes ? p.column_scales[n] : 0.0f, bias = writes && p.bias != nullptr ? p.bias[n] : 0.0f;
    const float residual = writes && p.accumulate ? load_y<T>(p.y, p.y_is_f32, n) : 0.0f;
    // One half-warp has the 16 rows of W in the lower 64 columns of the warp's window, the other in the upper.
    const int outlier_n = min(first_n + lane % kN, p.n - 1);
    const int zero = any && p.column_zeros != nullptr ? p.column_zeros[outlier_n] : 0;
    float outlier_sum = 0.0f;

    int32_t acc[4] = {};
    for (int step = 0; step < steps; ++step) {
      mbarrier_wait(&tail.full[stage], phase);
      // Pieces 2*part and 2*part + 1 of the row's eight: with the swizzle, two rows' fall into different banks.
      const uint8_t *from = stages + stage * kStageBytes + warp * kWindowBytes + group * kWindow;
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int piece = ((2 * part + u) ^ group) * 16;
        const uint4 low = *reinterpret_cast<const uint4 *>(from + piece), high = *reinterpret_cast<const uint4 *>(from + 8 * kWindow + piece);
        const uint32_t first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
        // The row of x is column 0 of the eight; the others are 0.
        uint4 v = make_uint4(0, 0, 0, 0);
        if (group == 0) v = *reinterpret_cast<const uint4 *>(x_codes + step * kStep + u * 16);
        mma_s8(acc, first, v.x, v.y);
        mma_s8(acc, second, v.z, v.w);
      }
      // The outliers' weights are in the stage, too.
      const int window = step * kWarps + warp;
      if (any && window * kWindow < p.k) {
        const uint2 bits = reinterpret_cast<const uint2 *>(mask_bytes)[window * 2 + lane / kN];
        const uint8_t *row = stages + stage * kStageBytes + warp * kWindowBytes + lane % kN * kWindow;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          for (uint32_t pending = h == 0 ? bits.x : bits.y; pending != 0; pending &= pending - 1) {
            const int column = lane / kN * 64 + h * 32 + __ffs(pending) - 1, k = window * kWindow + column;
            const int code = static_cast<int8_t>(row[((column / 16) ^ (lane % 8)) * 16 + column % 16]);
            const float weight = p.weights_are_codes ? static_cast<float>(code - zero) : outlier_weight<T>(p.weight, outlier_n, k);
            outlier_sum = fmaf(to_f32(kept[k]), weight, outlier_sum);
          }
        }
      }
      __syncwarp();
      if (lane == 0) mbarrier_arrive(&tail.empty[stage]);
      if (++stage == shape.stages) {
        stage = 0;
        phase ^= 1;
      }
    }

    outlier_sum += __shfl_xor_sync(0xffffffffu, outlier_sum, 16);

    multiplying_sync();  // the last group's sums have been read
    if (part == 0) {
      tail.partial[warp][group] = acc[0];
      tail.partial[warp][group + 8] = acc[2];
    }
    if (lane < kN) tail.outlier_partial[warp][lane] = outlier_sum;
    multiplying_sync();
    if (writes) {
      int32_t sum = 0;
      float outlying = 0.0f;
#pragma unroll
      for (int s = 0; s < kWarps; ++s) {
        sum += tail.partial[s][threadIdx.x];
        outlying += tail.outlier_partial[s][threadIdx.x];
      }
      float value = static_cast<float>(sum);
      if (zero_point || p.column_zeros != nullptr) {
        value = corrected(sum, parameters.zero, row_sum, p.column_zeros != nullptr ? p.column_zeros[n] : 0,
                          zero_point ? p.column_sums[n] : 0, p.k);
      }
      // Without outliers nothing is added: 0 times a scale that is not finite is NaN.
      if (any && p.weights_are_codes) outlying *= column_scale * (1.0f / 127.0f);
      value = value * (parameters.scale * (1.0f / 127.0f)) * (column_scale * (1.0f / 127.0f)) + outlying;
      value += bias;
      if (p.accumulate) value += residual;
      store_y<T>(p.y, p.y_is_f32, n, value);
    }
  }
#endif
}

// W as [k / 128][n][128 bytes]: a stage is one box.
int8_cuda_status encode_weights(CUtensorMap *map, const GemmParams &p) {
  EncodeTiled encoder = nullptr;
  INT8_CUDA_PASS(find_encoder(&encoder));
  const cuuint64_t sizes[3] = {kWindow, static_cast<cuuint64_t>(p.n), static_cast<cuuint64_t>(p.k / kWindow)};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(p.ldw), kWindow};
  const cuuint32_t box[3] = {kWindow, kN, kWarps}, by[3] = {1, 1, 1};
  return driver_status(encoder(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 3, const_cast<int8_t *>(p.w), sizes, strides, box, by,
                               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
}

// Shared memory beside the stages.
int64_t fixed_bytes(int64_t k) { return static_cast<int64_t>(sizeof(Tail)) + round_up<int64_t>(k, kStep) + k / 8 + k * 2; }

template <typename T, bool kWide>
int8_cuda_status launch_as(const GemmParams &p, bool zero_point, cudaStream_t stream, int multiprocessors) {
  const int fixed = static_cast<int>(fixed_bytes(p.k)), fitting = (kBytes - fixed) / kStageBytes;
  const int groups = ceil_div(p.n, kN), blocks = groups < multiprocessors ? groups : multiprocessors;
  const int early = static_cast<int>(kEarlyBytes / (static_cast<int64_t>(blocks) * kStageBytes));
  const GemvShape shape{fitting < kMaxStages ? fitting : kMaxStages, early};
  CUtensorMap map;
  INT8_CUDA_PASS(encode_weights(&map, p));
  INT8_CUDA_TRY(allow_shared(gemv_tma<T, kWide>, kBytes));
  Launch launch(dim3(static_cast<unsigned>(blocks)), dim3(kThreads), static_cast<size_t>(fixed + shape.stages * kStageBytes), stream, true);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, gemv_tma<T, kWide>, map, p, shape, zero_point ? 1 : 0));
  return INT8_CUDA_OK;
}

template <typename T>
int8_cuda_status launch_typed(const GemmParams &p, bool zero_point, cudaStream_t stream, int multiprocessors) {
  return p.x_is_f32 ? launch_as<T, true>(p, zero_point, stream, multiprocessors) : launch_as<T, false>(p, zero_point, stream, multiprocessors);
}

}  // namespace

bool gemv_tma_transforms(const int8_cuda_transform &f, int64_t k, int x_element, int element) {
  const bool aligned = reinterpret_cast<uintptr_t>(f.gain) % 16 == 0 && reinterpret_cast<uintptr_t>(f.bias) % 16 == 0;
  if (x_element == INT8_CUDA_F32) {
    const bool function = f.function == INT8_CUDA_IDENTITY || f.function == INT8_CUDA_RMS_NORM || f.function == INT8_CUDA_LAYER_NORM;
    return function && aligned && k <= kWideChunks * kMultiplying * kChunk;
  }
  const bool function = f.function == INT8_CUDA_IDENTITY || f.function == INT8_CUDA_ACTIVATION || f.function == INT8_CUDA_GATED;
  return function && x_element == element;
}

bool gemv_tma_supports(int64_t m, int64_t n, int64_t k, int element, const Device &device) {
  static_assert(sizeof(Tail) % 16 == 0, "the codes behind it are read in words of 16 bytes");
  const bool fits = k > 0 && k % kWindow == 0 && k <= kGemvTmaInner && fixed_bytes(k) + 3 * kStageBytes <= kBytes;
  return device.major == 9 && m == 1 && n > 0 && element != INT8_CUDA_F32 && fits;
}

int8_cuda_status launch_gemv_tma(const GemmParams &p, int element, bool zero_point, cudaStream_t stream, int multiprocessors) {
  switch (element) {
    case INT8_CUDA_F16: return launch_typed<__half>(p, zero_point, stream, multiprocessors);
    case INT8_CUDA_BF16: return launch_typed<__nv_bfloat16>(p, zero_point, stream, multiprocessors);
    default: return INT8_CUDA_UNSUPPORTED;
  }
}

}  // namespace int8_cuda
