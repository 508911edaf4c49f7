// y (+)= x * w^T + bias for few rows of x in 16 bits on sm_90: as gemv_16bit (float_gemv.cu), with the same order of every sum, but
// w streams through shared memory by bulk copies.
//
// One block a multiprocessor takes groups of kN rows of w in turn. It uses less than half of the shared memory, so that the next
// kernel's block runs beside it and fills its stages meanwhile (no kernel writes weights). One warp loads; the eight multiplying
// warps partition k.
#include "common/launch.cuh"
#include "common/tma.cuh"
#include "gemm/float_linear.cuh"
#include "gemm/mma_sync.cuh"

namespace int8_cuda {
namespace {

using Params = int8_cuda_float_linear_params;

constexpr int kWarps = 8, kMultiplying = kWarps * 32, kThreads = kMultiplying + 32;
// A step of a row: 128 bytes a warp. In shared memory rows are 64 bytes further apart, which puts the 16 bytes that the eight threads
// of a quarter-warp load from two rows into different banks.
constexpr int kStepBytes = kWarps * 128, kRowBytes = kStepBytes + 64;
constexpr int kMinStages = 4, kMaxStages = 12;
// Shared memory of a block: two fit on a multiprocessor.
constexpr int kBytes = 112 * 1024;
// Steps in flight a block, as in the int8 GEMV (gemv_tma.cu): more only queue before other kernels' loads.
constexpr int kInFlight = 3;
// Largest weights, in elements. In a model of products that all are larger, the kernel by registers is faster: OPT-6.7B with one
// sequence 222 tokens a second against 159, Llama-3-8B 204 against 143 (H200). A prefetch to L2 beside the stages cost 2 to 17 %.
constexpr int64_t kLargest = 8 << 20;

struct alignas(16) Tail {
  float partial[kWarps][16 * kFloatGemvM];
  uint64_t full[kMaxStages], empty[kMaxStages];
  // Followed by x, T [m, k] row-major in rows of x_row_bytes.
};

// Rows of x, likewise 64 bytes beyond a multiple of 128 apart.
__host__ __device__ constexpr int64_t x_row_bytes(int64_t k) { return (k * 2 + 127) / 128 * 128 + 64; }

template <typename T, int kN>
__global__ void __launch_bounds__(kThreads, 2) float_gemv_tma(const __grid_constant__ Params p, int stages) {
#if __CUDA_ARCH__ >= 900
  constexpr int kParts = kN / 8, kStageBytes = kN * kRowBytes;
  extern __shared__ __align__(128) uint8_t memory[];
  Tail &tail = *reinterpret_cast<Tail *>(memory + stages * kStageBytes);
  uint8_t *x_rows = reinterpret_cast<uint8_t *>(&tail + 1);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, part = lane % 4;
  const int n = static_cast<int>(p.n), m = static_cast<int>(p.m), k = static_cast<int>(p.k), row_bytes = k * 2;
  const int steps = ceil_div(row_bytes, kStepBytes), groups = ceil_div(n, kN);

  if (threadIdx.x == 0) {
    for (int s = 0; s < stages; ++s) {
      mbarrier_init(&tail.full[s], 1);
      mbarrier_init(&tail.empty[s], kWarps);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  pdl_trigger();

  if (warp == kWarps) {
    // Lane r loads row r of the group.
    int stage = 0, oldest = 0, loads = 0;
    uint32_t phase = 0, oldest_phase = 0;
    const uint8_t *w = static_cast<const uint8_t *>(p.w);
    for (int g = blockIdx.x; g < groups; g += gridDim.x) {
      const int rows = min(kN, n - g * kN);
      for (int step = 0; step < steps; ++step) {
        const int bytes = min(kStepBytes, row_bytes - step * kStepBytes);
        if (loads++ >= kInFlight) {
          mbarrier_wait(&tail.full[oldest], oldest_phase);
          if (++oldest == stages) {
            oldest = 0;
            oldest_phase ^= 1;
          }
        }
        mbarrier_wait(&tail.empty[stage], phase ^ 1);
        if (lane == 0) mbarrier_expect(&tail.full[stage], static_cast<uint32_t>(bytes * rows));
        __syncwarp();
        if (lane < rows) {
          tma_load_bytes(memory + stage * kStageBytes + lane * kRowBytes, w + (static_cast<int64_t>(g) * kN + lane) * row_bytes + step * kStepBytes,
                         static_cast<uint32_t>(bytes), &tail.full[stage]);
        }
        if (++stage == stages) {
          stage = 0;
          phase ^= 1;
        }
      }
    }
    return;
  }

  pdl_wait();
  const int64_t x_stride = x_row_bytes(k);
  for (int row = 0; row < m; ++row) {
    const uint8_t *from = reinterpret_cast<const uint8_t *>(static_cast<const T *>(p.x) + row * p.ldx);
    for (int at = static_cast<int>(threadIdx.x) * 16; at < row_bytes; at += kMultiplying * 16) {
      *reinterpret_cast<uint4 *>(x_rows + row * x_stride + at) = *reinterpret_cast<const uint4 *>(from + at);
    }
  }
  named_barrier(1, kMultiplying);
  const uint8_t *x = x_rows + group * x_stride;
  const bool has_x = group < m;
  const int output_m = threadIdx.x / kN, output = threadIdx.x % kN;
  int stage = 0;
  uint32_t phase = 0;
  for (int g = blockIdx.x; g < groups; g += gridDim.x) {
    const int output_n = g * kN + output;
    const bool writes = output_m < m && output_n < n;
    // Loaded here, used at the end.
    float added = writes && p.bias != nullptr ? p.bias[output_n] : 0.0f;
    if (writes && p.store == INT8_CUDA_ACCUMULATE) added += load_element(p.y, output_m * p.ldy + output_n, p.y_element);
    // Rows beyond n repeat the group's first; their results are not stored.
    const int low_row = g * kN + group < n ? group : 0, high_row = g * kN + group + 8 < n ? group + 8 : 0;
    float acc[4] = {};
    for (int step = 0; step < steps; ++step) {
      mbarrier_wait(&tail.full[stage], phase);
      const uint8_t *from = memory + stage * kStageBytes;
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int at = warp * 128 + u * 64 + part * 16, column = step * kStepBytes + at;
        const bool inside = column < row_bytes;
        const uint4 zero = make_uint4(0, 0, 0, 0);
        const uint4 low = inside ? *reinterpret_cast<const uint4 *>(from + low_row * kRowBytes + at) : zero;
        const uint4 high = inside && kParts == 2 ? *reinterpret_cast<const uint4 *>(from + high_row * kRowBytes + at) : zero;
        const uint4 v = inside && has_x ? *reinterpret_cast<const uint4 *>(x + column) : zero;
        const uint32_t first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
        mma_16bit(acc, first, v.x, v.y, T{});
        mma_16bit(acc, second, v.z, v.w, T{});
      }
      __syncwarp();
      if (lane == 0) mbarrier_arrive(&tail.empty[stage]);
      if (++stage == stages) {
        stage = 0;
        phase ^= 1;
      }
    }
    named_barrier(1, kMultiplying);  // the last group's sums have been read
#pragma unroll
    for (int i = 0; i < 2 * kParts; ++i) tail.partial[warp][(part * 2 + i % 2) * kN + group + i / 2 * 8] = acc[i];
    named_barrier(1, kMultiplying);
    if (writes) {
      float sum = 0.0f;
#pragma unroll
      for (int s = 0; s < kWarps; ++s) sum += tail.partial[s][threadIdx.x];
      store_element(p.y, output_m * p.ldy + output_n, p.y_element, sum + added);
    }
  }
#endif
}

int stages_of(const Params &p, int rows) {
  const int64_t free = kBytes - static_cast<int64_t>(sizeof(Tail)) - p.m * x_row_bytes(p.k);
  const int64_t fitting = free / (rows * kRowBytes);
  return static_cast<int>(fitting < kMaxStages ? fitting : kMaxStages);
}

template <typename T, int kN>
int8_cuda_status launch_rows(const Params &p, int multiprocessors) {
  const int64_t groups = ceil_div<int64_t>(p.n, kN), blocks = groups < multiprocessors ? groups : multiprocessors;
  const int stages = stages_of(p, kN);
  const size_t bytes = static_cast<size_t>(stages) * kN * kRowBytes + sizeof(Tail) + static_cast<size_t>(p.m * x_row_bytes(p.k));
  INT8_CUDA_TRY(allow_shared(float_gemv_tma<T, kN>, kBytes));
  Launch launch(dim3(static_cast<unsigned>(blocks)), dim3(kThreads), bytes, static_cast<cudaStream_t>(p.stream), true);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, float_gemv_tma<T, kN>, p, stages));
  return INT8_CUDA_OK;
}

template <typename T>
int8_cuda_status launch_typed(const Params &p, int multiprocessors) {
  // Groups of 8 rows where those of 16 would leave more multiprocessors idle in the last round.
  const auto rounds = [&](int64_t rows) { return ceil_div(ceil_div(p.n, rows), static_cast<int64_t>(multiprocessors)) * rows; };
  return rounds(8) * 10 < rounds(16) * 9 ? launch_rows<T, 8>(p, multiprocessors) : launch_rows<T, 16>(p, multiprocessors);
}

}  // namespace

bool float_gemv_tma_supports(const Params &p, const Device &device) {
  return device.major == 9 && p.element != INT8_CUDA_F32 && p.m <= kFloatGemvM && p.k > 0 && p.k % 8 == 0 &&
         p.n * p.k <= kLargest &&
         rows_aligned(p.x, p.ldx, p.element) && rows_aligned(p.w, p.k, p.element) && stages_of(p, 16) >= kMinStages;
}

int8_cuda_status launch_float_gemv_tma(const Params &p, const Device &device) {
  return p.element == INT8_CUDA_F16 ? launch_typed<__half>(p, device.multiprocessors) : launch_typed<__nv_bfloat16>(p, device.multiprocessors);
}

}  // namespace int8_cuda
