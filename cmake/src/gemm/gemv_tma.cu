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
#include "prologue/row.cuh"

namespace int8_cuda {
namespace {

constexpr int kWarps = kRowWarps, kThreads = kRowThreads + 32;
constexpr int kN = 16;
// A warp takes 128 bytes of K, the widest row of the swizzle; a stage is one TMA load of 16 rows for all eight.
constexpr int kWindow = 128, kStep = kWarps * kWindow;
constexpr int kWindowBytes = kN * kWindow, kStageBytes = kN * kStep;
constexpr int kMaxStages = 8;
// Shared memory of a block: two fit on a multiprocessor, or, of a wider row, one.
constexpr int kBytes = 112 * 1024, kBytesAlone = 226 * 1024;
int bytes_for(int64_t k) { return k <= kGemvTmaPairInner ? kBytes : kBytesAlone; }
// Loads in flight a block: 6 MB on all multiprocessors, twice what keeps memory busy (4.3 TB/s for 0.8 us). More queue before the
// loads of other kernels, and each of the few that a prologue or attention waits for takes as long as the queue.
constexpr int kInFlight = 3;

// Shared memory behind the stages.
struct alignas(16) Tail {
  int32_t partial[kWarps][kN];
  float outlier_partial[kWarps][kN];
  uint64_t full[kMaxStages], empty[kMaxStages];
  uint32_t scratch[kWarps];
  // Followed by the codes, i8 [round_up(k, kStep)], the outlier mask, 1 bit [k], and the outliers, T [k].
};

// kWide: x is f32; else of type T.
template <typename T, bool kWide>
__global__ void __launch_bounds__(kThreads, 2)
    gemv_tma(const __grid_constant__ CUtensorMap map_w, const __grid_constant__ GemmParams p, int stage_count, int zero_point) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(1024) uint8_t stages[];  // the swizzle counts from multiples of 1024 bytes
  if (shared_address(stages) % 1024 != 0) __trap();
  const int steps = ceil_div(p.k, kStep), chunks = p.k / kChunk, groups = ceil_div(p.n, kN);
  Tail &tail = *reinterpret_cast<Tail *>(stages + stage_count * kStageBytes);
  uint8_t *codes = reinterpret_cast<uint8_t *>(&tail + 1), *mask_bytes = codes + steps * kStep;  // a byte a chunk
  T *kept = reinterpret_cast<T *>(mask_bytes + p.k / kChunk);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, part = lane % 4;
  const bool decompose = p.outlier_columns != nullptr;

  if (threadIdx.x == 0) {
    for (int s = 0; s < stage_count; ++s) {
      mbarrier_init(&tail.full[s], 1);
      mbarrier_init(&tail.empty[s], kWarps);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  pdl_trigger();

  if (warp == kWarps) {
    if (lane != 0) return;
    int stage = 0, oldest = 0, loads = 0;
    uint32_t phase = 0, oldest_phase = 0;
    // Weights are read once: they leave the L2 cache before the activations do.
    const uint64_t once = evict_first_policy();
    for (int g = blockIdx.x; g < groups; g += gridDim.x) {
      for (int step = 0; step < steps; ++step) {
        if (loads++ >= kInFlight) {
          mbarrier_wait(&tail.full[oldest], oldest_phase);
          if (++oldest == stage_count) {
            oldest = 0;
            oldest_phase ^= 1;
          }
        }
        mbarrier_wait(&tail.empty[stage], phase ^ 1);
        mbarrier_expect(&tail.full[stage], kStageBytes);
        tma_load_3d(stages + stage * kStageBytes, map_w, 0, g * kN, step * kWarps, &tail.full[stage], once);
        if (++stage == stage_count) {
          stage = 0;
          phase ^= 1;
        }
      }
    }
    return;
  }

  if constexpr (kWide) prefetch_norm(p.transform, p.k);
  pdl_wait();
  const float threshold = !decompose ? infinity() : p.thresholds != nullptr ? p.thresholds[0] : p.threshold;
  load_row<T, kWide>(p.transform, p.x, p.k, tail.scratch, kept);
  uint32_t found = 0;
  const PackedRange<T> packed = scan_row(kept, chunks, decompose, threshold, zero_point != 0, mask_bytes, &found);
  bool any = false;
  const QuantizationParameters parameters(reduce_range(packed, zero_point != 0, found, tail.scratch, &any), zero_point ? INT8_CUDA_ZEROPOINT : INT8_CUDA_ABSMAX);
  int32_t row_sum = encode_row(kept, p.k, steps * kStep, mask_bytes, parameters, zero_point != 0, reinterpret_cast<int8_t *>(codes));
  if (p.column_zeros != nullptr) row_sum = row_reduce(row_sum, [](int32_t a, int32_t b) { return a + b; }, tail.scratch);
  row_sync();
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
      if (++stage == stage_count) {
        stage = 0;
        phase ^= 1;
      }
    }

    outlier_sum += __shfl_xor_sync(0xffffffffu, outlier_sum, 16);

    row_sync();  // the last group's sums have been read
    if (part == 0) {
      tail.partial[warp][group] = acc[0];
      tail.partial[warp][group + 8] = acc[2];
    }
    if (lane < kN) tail.outlier_partial[warp][lane] = outlier_sum;
    row_sync();
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
  const int fixed = static_cast<int>(fixed_bytes(p.k)), bytes = bytes_for(p.k), fitting = (bytes - fixed) / kStageBytes;
  const int groups = ceil_div(p.n, kN), blocks = groups < multiprocessors ? groups : multiprocessors;
  const int stages = fitting < kMaxStages ? fitting : kMaxStages;
  CUtensorMap map;
  INT8_CUDA_PASS(encode_weights(&map, p));
  INT8_CUDA_TRY(allow_shared(gemv_tma<T, kWide>, kBytesAlone));
  Launch launch(dim3(static_cast<unsigned>(blocks)), dim3(kThreads), static_cast<size_t>(fixed + stages * kStageBytes), stream, true);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, gemv_tma<T, kWide>, map, p, stages, zero_point ? 1 : 0));
  return INT8_CUDA_OK;
}

template <typename T>
int8_cuda_status launch_typed(const GemmParams &p, bool zero_point, cudaStream_t stream, int multiprocessors) {
  return p.x_is_f32 ? launch_as<T, true>(p, zero_point, stream, multiprocessors) : launch_as<T, false>(p, zero_point, stream, multiprocessors);
}

}  // namespace

bool gemv_tma_transforms(const int8_cuda_transform &f, int64_t k, int x_element, int element) { return row_functions(f, k, x_element, element); }

bool gemv_tma_supports(int64_t m, int64_t n, int64_t k, int element, const Device &device) {
  static_assert(sizeof(Tail) % 16 == 0, "the codes behind it are read in words of 16 bytes");
  const bool fits = k > 0 && k % kWindow == 0 && k <= kGemvTmaInner && fixed_bytes(k) + 3 * kStageBytes <= bytes_for(k);
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
