// The layer for few rows on sm_90: bound by the bytes of W, which the copy engine streams through shared memory.
//
// One block a multiprocessor takes groups of 16 rows of W in turn. It uses less than half of the shared memory and registers,
// so that the next layer's block is resident beside it and fills its stages while this one still works: weights are nobody's
// output, and the memory is never idle between layers. The eight multiplying warps share out K.
//
// One row of x is quantised by every block for itself; more of them by a kernel before this one.
#include "codes.cuh"
#include "gemm.cuh"
#include "hopper.cuh"
#include "mma.cuh"

namespace int8_cuda {
namespace {

constexpr int kWarps = 8, kMultiplying = kWarps * 32, kThreads = kMultiplying + 32;
constexpr int kN = 16;
// Bytes of K of a stage: 64 a warp, which are 16 a thread.
constexpr int kWindow = 64, kStep = kWarps * kWindow;
// Rows in shared memory are 64 bytes off each other's banks, so that eight threads read two rows' pieces without conflict.
constexpr int kStride = kStep + 64;
constexpr int kStageBytes = kN * kStride;
constexpr int kMaxStages = 12;
// Two blocks fit on a multiprocessor, with a little left for the quantisation between them.
constexpr int kBlockBytes = 108 * 1024;
// Bytes of W that all blocks together ask L2 for before their predecessor has ended, beside what their stages hold.
constexpr int64_t kEarlyBytes = 24 << 20;

struct StreamShape {
  int stages, early_steps;
};

template <int kTiles>
struct Head {
  int32_t partial[kWarps][kN * kTiles * 8];
  float outlier_partial[kWarps][kN];
  uint64_t full[kMaxStages], empty[kMaxStages], codes_there;
  uint32_t scratch[kWarps];
  float scratch_f32[kWarps];
  int32_t scratch_i32[kWarps];
  uint32_t outliers;
};

__device__ __forceinline__ void multiplying_sync() { named_barrier(1, kMultiplying); }

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

// kOne: x [1, k] is quantised here. Otherwise a holds the codes of at most 8 * kTiles rows.
template <typename T, int kTiles, bool kOne>
__global__ void __launch_bounds__(kThreads, 2) stream_layer(const __grid_constant__ GemmParams p, const StreamShape shape, int zero_point) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) uint8_t memory[];
  using Memory = Head<kTiles>;
  Memory &head = *reinterpret_cast<Memory *>(memory);
  uint8_t *stages = memory + round_up(sizeof(Memory), size_t{128});
  uint8_t *codes = stages + shape.stages * kStageBytes;
  const int inner = round_up(p.k, 16), steps = ceil_div(inner, kStep), code_stride = steps * kStep + 64;
  uint8_t *mask_bytes = codes + (kOne ? 1 : p.m) * code_stride;                                      // kOne: round_up(k, 32) / 8
  uint16_t *list = reinterpret_cast<uint16_t *>(mask_bytes + round_up(ceil_div(p.k, 8), 16));  // kOne: [k]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, part = lane % 4;
  const int groups = ceil_div(p.n, kN);
  const bool decompose = kOne ? p.outlier_columns != nullptr : p.outlier_count != nullptr;

  if (threadIdx.x == 0) {
    for (int s = 0; s < shape.stages; ++s) {
      barrier_init(&head.full[s], 1);
      barrier_init(&head.empty[s], kWarps);
    }
    barrier_init(&head.codes_there, 1);
    barrier_init_fence();
  }
  __syncthreads();
  let_successor_start();

  if (warp == kWarps) {
    int stage = 0;
    uint32_t phase = 0;
    auto row_of = [&](int g) { return p.w + static_cast<int64_t>(min(g * kN + lane % kN, p.n - 1)) * p.ldw; };
    int done = 0;
    for (int g = blockIdx.x; g < groups; g += gridDim.x) {
      const int8_t *row = row_of(g);
      for (int step = 0; step < steps; ++step, ++done) {
        if (done == shape.stages) {
          // The stages are full; what comes next is asked for in L2 at least.
          int at = step, ahead = g;
          for (int i = 0; i < shape.early_steps && ahead < groups; ++i) {
            if (lane < kN) prefetch_bytes_to_l2(row_of(ahead) + at * kStep, static_cast<uint32_t>(min(kStep, inner - at * kStep)));
            if (++at == steps) {
              at = 0;
              ahead += gridDim.x;
            }
          }
        }
        const uint32_t bytes = static_cast<uint32_t>(min(kStep, inner - step * kStep));
        barrier_wait(&head.empty[stage], phase ^ 1);
        if (lane == 0) barrier_expect(&head.full[stage], bytes * kN);
        __syncwarp();
        if (lane < kN) copy_bytes_in(stages + stage * kStageBytes + lane * kStride, row + step * kStep, bytes, &head.full[stage]);
        if (++stage == shape.stages) {
          stage = 0;
          phase ^= 1;
        }
      }
    }
    return;
  }

  wait_for_predecessor();
  const T *x = static_cast<const T *>(p.x);
  uint32_t outliers = 0;
  float row_scale = 0.0f;
  int32_t row_zero = 0, row_sum = 0;
  if constexpr (kOne) {
    constexpr int kCached = kStreamOneInner / kChunk / kMultiplying;
    const int chunks = inner / kChunk;
    const float threshold = !decompose ? infinity() : p.thresholds != nullptr ? p.thresholds[0] : p.threshold;
    const uint32_t floor = Packed<T>::at_least(threshold);
    uint4 cache[kCached];
    uint32_t skipped[kCached];
#pragma unroll
    for (int c = 0; c < kCached; ++c) {
      const int chunk = static_cast<int>(threadIdx.x) + c * kMultiplying;
      cache[c] = make_uint4(0, 0, 0, 0);
      if (chunk < chunks) load_chunk<T, true>(x, static_cast<int64_t>(chunk) * kChunk, p.k, reinterpret_cast<T(&)[kChunk]>(cache[c]));
    }
    PackedRange<T> packed;
    uint32_t met = 0;
#pragma unroll
    for (int c = 0; c < kCached; ++c) {
      const T(&v)[kChunk] = reinterpret_cast<const T(&)[kChunk]>(cache[c]);
      const uint32_t skip = decompose ? hits_of<T, true>(v, threshold, floor) : 0u;
      skipped[c] = skip;
      met |= skip;
#pragma unroll
      for (int i = 0; i < kChunk / 2; ++i) {
        uint32_t word = words_of(v)[i];
        if (skip != 0) word &= (skip >> (2 * i) & 1u ? 0u : 0xffffu) | (skip >> (2 * i) & 2u ? 0u : 0xffff0000u);
        packed.add(word, zero_point != 0);
      }
    }
    // The largest magnitude in the low bits, and above them whether there are outliers.
    const uint32_t both = warps_reduce(larger_half(packed.most) | (met != 0 ? 0x10000u : 0u),
                                       [](uint32_t a, uint32_t b) { return max(a & 0xffffu, b & 0xffffu) | ((a | b) & 0x10000u); },
                                       head.scratch);
    const uint32_t most = both & 0xffffu;
    RangeOfRow range;
    range.infinite = most >= Packed<T>::kInfinity;
    range.high = Packed<T>::unpack(most).x;
    if (zero_point) {
      const float2 low = Packed<T>::unpack(packed.low), high = Packed<T>::unpack(packed.high);
      range.low = warps_reduce(fminf(low.x, low.y), [](float a, float b) { return fminf(a, b); }, head.scratch_f32);
      multiplying_sync();
      range.high = warps_reduce(fmaxf(high.x, high.y), [](float a, float b) { return fmaxf(a, b); }, head.scratch_f32);
    }
    const Constants constants(range, zero_point ? INT8_CUDA_ZEROPOINT : INT8_CUDA_ABSMAX);
    const bool any = (both & 0x10000u) != 0;
#pragma unroll
    for (int c = 0; c < kCached; ++c) {
      const int chunk = static_cast<int>(threadIdx.x) + c * kMultiplying;
      if (chunk * kChunk >= steps * kStep) break;
      uint32_t q[2] = {0, 0};
      if (chunk < chunks) {
        encode_chunk<T, true>(reinterpret_cast<const T(&)[kChunk]>(cache[c]), constants, zero_point != 0, skipped[c],
                              p.k - static_cast<int64_t>(chunk) * kChunk, q);
        row_sum = __dp4a(static_cast<int>(q[0]), 0x01010101, __dp4a(static_cast<int>(q[1]), 0x01010101, row_sum));
        if (any && chunk < ceil_div(p.k, 32) * 4) mask_bytes[chunk] = static_cast<uint8_t>(skipped[c]);
      }
      *reinterpret_cast<uint2 *>(codes + chunk * kChunk) = make_uint2(q[0], q[1]);
    }
    if (any && threadIdx.x < 4) {
      // Bytes beyond the last chunk belong to the last word.
      const int byte = chunks + static_cast<int>(threadIdx.x);
      if (byte < ceil_div(p.k, 32) * 4) mask_bytes[byte] = 0;
    }
    if (p.column_zeros != nullptr) row_sum = warps_reduce(row_sum, [](int32_t a, int32_t b) { return a + b; }, head.scratch_i32);
    multiplying_sync();
    if (any) {
      // One warp lists the columns, ascending.
      if (warp == 0) {
        uint32_t base = 0;
        for (int first = 0; first < ceil_div(p.k, 32); first += 32) {
          uint32_t bits = first + lane < ceil_div(p.k, 32) ? reinterpret_cast<const uint32_t *>(mask_bytes)[first + lane] : 0u;
          uint32_t inclusive = __popc(bits);
          const uint32_t own = inclusive;
#pragma unroll
          for (int offset = 1; offset < 32; offset *= 2) {
            const uint32_t other = __shfl_up_sync(0xffffffffu, inclusive, offset);
            if (lane >= offset) inclusive += other;
          }
          for (uint32_t rank = base + inclusive - own; bits != 0; ++rank, bits &= bits - 1) {
            list[rank] = static_cast<uint16_t>((first + lane) * 32 + __ffs(bits) - 1);
          }
          base += __shfl_sync(0xffffffffu, inclusive, 31);
        }
        if (lane == 0) head.outliers = base;
      }
      multiplying_sync();
      outliers = head.outliers;
    }
    row_scale = constants.scale;
    row_zero = constants.zero;
  } else {
    if (threadIdx.x == 0) {
      barrier_expect(&head.codes_there, static_cast<uint32_t>(inner * p.m));
      for (int m = 0; m < p.m; ++m) {
        copy_bytes_in(codes + m * code_stride, p.a + m * p.lda, static_cast<uint32_t>(inner), &head.codes_there);
      }
    }
    const int tail = (steps * kStep - inner) / 16;
    for (int i = threadIdx.x; i < tail * p.m; i += kMultiplying) {
      *reinterpret_cast<uint4 *>(codes + i / tail * code_stride + inner + i % tail * 16) = make_uint4(0, 0, 0, 0);
    }
    if (decompose) outliers = *p.outlier_count;
    multiplying_sync();
    barrier_wait(&head.codes_there, 0);
  }

  constexpr int kM = kOne ? 1 : kTiles * 8, kOutputs = kN * kM, kHalf = kOne ? 1 : kM / 2;
  const uint8_t *x_codes[kTiles];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    x_codes[t] = codes + (kOne ? 0 : min(t * 8 + group, p.m - 1)) * code_stride + warp * kWindow + part * 16;
  }
  const T *outlier_x = static_cast<const T *>(p.outlier_x);
  int stage = 0;
  uint32_t phase = 0;
  for (int g = blockIdx.x; g < groups; g += gridDim.x) {
    const int first_n = g * kN;
    // The warps share out the outlier columns; half a warp takes the 16 rows of W, the halves alternate rows of x, or columns.
    float outlier_sums[kHalf] = {};
    const int outlier_n = min(first_n + lane % 16, p.n - 1);
    if constexpr (kOne) {
      for (uint32_t j = threadIdx.x / 16; j < outliers; j += kMultiplying / 16) {
        const int k = list[j];
        outlier_sums[0] = fmaf(to_f32(x[k]), outlier_weight<T>(p.weight, outlier_n, k), outlier_sums[0]);
      }
    } else {
      for (uint32_t j = warp; j < outliers; j += kWarps) {
        const float weight = outlier_weight<T>(p.weight, outlier_n, p.outlier_columns[j]);
        float v[kHalf];
#pragma unroll
        for (int i = 0; i < kHalf; ++i) {
          const int m = 2 * i + lane / 16;
          v[i] = m < p.m ? to_f32(outlier_x[outlier_index(p.m, m, j)]) : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < kHalf; ++i) outlier_sums[i] = fmaf(v[i], weight, outlier_sums[i]);
      }
    }

    int32_t acc[kTiles][4] = {};
    for (int step = 0; step < steps; ++step) {
      barrier_wait(&head.full[stage], phase);
      const uint8_t *from = stages + stage * kStageBytes + group * kStride + warp * kWindow + part * 16;
      const uint4 low = *reinterpret_cast<const uint4 *>(from), high = *reinterpret_cast<const uint4 *>(from + 8 * kStride);
      const uint32_t first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        // One row: it is column 0 of the eight, the others are 0.
        uint4 v = make_uint4(0, 0, 0, 0);
        if (!kOne || group == 0) v = *reinterpret_cast<const uint4 *>(x_codes[t] + step * kStep);
        mma_s8(acc[t], first, v.x, v.y);
        mma_s8(acc[t], second, v.z, v.w);
      }
      __syncwarp();
      if (lane == 0) barrier_arrive_here(&head.empty[stage]);
      if (++stage == shape.stages) {
        stage = 0;
        phase ^= 1;
      }
    }

    multiplying_sync();  // the last group's sums have been read
    if constexpr (kOne) {
      if (part == 0) {
        head.partial[warp][group] = acc[0][0];
        head.partial[warp][group + 8] = acc[0][2];
      }
      const float sum = outlier_sums[0] + __shfl_xor_sync(0xffffffffu, outlier_sums[0], 16);
      if (lane < 16) head.outlier_partial[warp][lane] = sum;
    } else {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int n = group + i / 2 * 8, m = t * 8 + part * 2 + i % 2;
          head.partial[warp][m * kN + n] = acc[t][i];
        }
      }
    }
    multiplying_sync();

    // Each thread finishes one output; neighbours in n.
    static_assert(kOutputs <= kMultiplying, "one output a thread");
    const int m = static_cast<int>(threadIdx.x) / kN, n = first_n + static_cast<int>(threadIdx.x) % kN;
    const bool finishes = static_cast<int>(threadIdx.x) < kOutputs && m < p.m && n < p.n;
    float result = 0.0f;
    if (finishes) {
      int32_t sum = 0;
#pragma unroll
      for (int s = 0; s < kWarps; ++s) sum += head.partial[s][threadIdx.x];
      float value = static_cast<float>(sum);
      if (zero_point || p.column_zeros != nullptr) {
        if constexpr (!kOne) {
          row_zero = zero_point ? p.row_zeros[m] : 0;
          row_sum = p.column_zeros != nullptr ? p.row_sums[m] : 0;
        }
        value = corrected(sum, row_zero, row_sum, p.column_zeros != nullptr ? p.column_zeros[n] : 0,
                          zero_point ? p.column_sums[n] : 0, p.k);
      }
      if constexpr (!kOne) row_scale = p.row_scales[m];
      result = value * (row_scale * (1.0f / 127.0f)) * (p.column_scales[n] * (1.0f / 127.0f));
      if constexpr (kOne) {
#pragma unroll
        for (int s = 0; s < kWarps; ++s) result += head.outlier_partial[s][threadIdx.x];
      }
    }
    if (!kOne && outliers > 0) {
      multiplying_sync();
#pragma unroll
      for (int i = 0; i < kHalf; ++i) {
        head.partial[warp][(2 * i + lane / 16) * kN + lane % 16] = __float_as_int(outlier_sums[i]);
      }
      multiplying_sync();
      if (finishes) {
        float sum = 0.0f;
#pragma unroll
        for (int s = 0; s < kWarps; ++s) sum += __int_as_float(head.partial[s][threadIdx.x]);
        result += sum;
      }
    }
    if (finishes) static_cast<T *>(p.y)[m * p.ldy + n] = from_f32<T>(result + (p.bias != nullptr ? p.bias[n] : 0.0f));
  }
#endif
}

template <typename T, int kTiles, bool kOne>
int8_cuda_status launch_tiles(const GemmParams &p, bool zero_point, cudaStream_t stream, int multiprocessors) {
  const int inner = round_up(p.k, 16), steps = ceil_div(inner, kStep);
  const int rows = (kOne ? 1 : p.m) * (steps * kStep + 64);
  const int rest = kOne ? round_up(ceil_div(p.k, 8), 16) + round_up(p.k, 8) * 2 : 0;
  const int fixed = static_cast<int>(round_up(sizeof(Head<kTiles>), size_t{128})) + rows + rest;
  StreamShape shape{(kBlockBytes - fixed) / kStageBytes, 0};
  if (shape.stages > kMaxStages) shape.stages = kMaxStages;
  if (shape.stages < 2) return INT8_CUDA_UNSUPPORTED;
  const int groups = ceil_div(p.n, kN), blocks = groups < multiprocessors ? groups : multiprocessors;
  shape.early_steps = static_cast<int>(kEarlyBytes / (static_cast<int64_t>(blocks) * kN * kStep));
  const size_t shared = static_cast<size_t>(fixed + shape.stages * kStageBytes);
  INT8_CUDA_TRY(allow_shared(stream_layer<T, kTiles, kOne>, shared));
  Launch launch(dim3(static_cast<unsigned>(blocks)), dim3(kThreads), shared, stream, true);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, stream_layer<T, kTiles, kOne>, p, shape, zero_point ? 1 : 0));
  return INT8_CUDA_OK;
}

template <typename T>
int8_cuda_status launch_typed(const GemmParams &p, bool one, bool zero_point, cudaStream_t stream, int multiprocessors) {
  if constexpr (sizeof(T) == 2) {
    if (one) return launch_tiles<T, 1, true>(p, zero_point, stream, multiprocessors);
  }
  if (p.m <= 8) return launch_tiles<T, 1, false>(p, zero_point, stream, multiprocessors);
  return launch_tiles<T, 2, false>(p, zero_point, stream, multiprocessors);
}

}  // namespace

bool stream_takes(int64_t m, int64_t k, int element, bool one, const Device &device) {
  if (device.major != 9 || k == 0 || m == 0) return false;
  if (one) return m == 1 && element != INT8_CUDA_F32 && k <= kStreamOneInner;
  const int64_t rows = m * (round_up<int64_t>(k, kStep) + 64);
  return m <= kStreamRows && rows + static_cast<int64_t>(sizeof(Head<2>)) + 128 + 4 * kStageBytes <= kBlockBytes;
}

int8_cuda_status launch_stream(const GemmParams &p, int element, bool one, bool zero_point, cudaStream_t stream, int multiprocessors) {
  switch (element) {
    case INT8_CUDA_F16: return launch_typed<__half>(p, one, zero_point, stream, multiprocessors);
    case INT8_CUDA_BF16: return launch_typed<__nv_bfloat16>(p, one, zero_point, stream, multiprocessors);
    case INT8_CUDA_F32: return one ? INT8_CUDA_UNSUPPORTED : launch_typed<float>(p, false, zero_point, stream, multiprocessors);
    default: return INT8_CUDA_INVALID;
  }
}

}  // namespace int8_cuda
