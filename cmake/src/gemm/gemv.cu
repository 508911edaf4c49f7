// GEMV, M = 1, prologue inside: every block quantises x for itself while its first weights are loading, which costs less than
// waiting for another kernel. Codes and the outlier mask are in shared memory; weights go straight into the registers of
// mma.sync, as in small_m.cu.
#include "common/launch.cuh"
#include "epilogue/store.cuh"
#include "epilogue/zero_point.cuh"
#include "gemm/mma_sync.cuh"
#include "gemm/weight_loads.cuh"
#include "prologue/outlier_columns.cuh"

namespace int8_cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
// Bytes of K that a warp takes at a time: four threads a row, 16 bytes each.
constexpr int kWindow = 64;

template <typename T>
__global__ void __launch_bounds__(kThreads, 3) gemv(const __grid_constant__ GemmParams p, int zero_point, int early_bytes) {
  extern __shared__ __align__(16) uint8_t codes[];
  __shared__ int32_t partial[kWarps][16];
  __shared__ float outlier_partial[kWarps][16];
  __shared__ uint32_t scratch[kWarps];
  __shared__ float scratch_f32[kWarps];
  __shared__ int32_t scratch_i32[kWarps];
  constexpr int kUnroll = 4;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, part = lane % 4;
  const int first_n = blockIdx.x * 16;
  const int inner = round_up(p.k, 16), windows = ceil_div(inner, kWindow), chunks = inner / kChunk;
  uint32_t *mask = reinterpret_cast<uint32_t *>(codes + round_up(inner, kWindow));
  const int words = ceil_div(p.k, 32);
  const bool decompose = p.outlier_columns != nullptr;

  if (early_bytes > 0 && threadIdx.x < 16 && first_n + static_cast<int>(threadIdx.x) < p.n) {
    prefetch_bytes_to_l2(p.w + (first_n + static_cast<int64_t>(threadIdx.x)) * p.ldw, min(early_bytes, inner));
  }
  pdl_trigger();
  pdl_wait();

  const int8_t *w[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) w[h] = p.w + static_cast<int64_t>(min(first_n + h * 8 + group, p.n - 1)) * p.ldw + part * 16;
  uint4 wv[kUnroll][2];
  auto load = [&](int base) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int offset = (base + u * kWarps) * kWindow;
      const bool inside = offset + part * 16 < inner;
#pragma unroll
      for (int h = 0; h < 2; ++h) wv[u][h] = inside ? load_streamed(w[h] + offset) : make_uint4(0, 0, 0, 0);
    }
  };
  load(warp);

  const T *x = static_cast<const T *>(p.x);
  const float threshold = !decompose ? infinity() : p.thresholds != nullptr ? p.thresholds[0] : p.threshold;
  const uint32_t floor = Packed<T>::at_least(threshold);
  if (decompose) {
    // Bytes beyond the last chunk belong to the last word.
    for (int i = chunks + static_cast<int>(threadIdx.x); i < words * 4; i += kThreads) reinterpret_cast<uint8_t *>(mask)[i] = 0;
  }
  // Loaded here, used at the end.
  const int n = first_n + static_cast<int>(threadIdx.x);
  const bool writes = threadIdx.x < 16 && n < p.n;
  const float column_scale = writes ? p.column_scales[n] : 0.0f, bias = writes && p.bias != nullptr ? p.bias[n] : 0.0f;
  const float residual = writes && p.accumulate ? load_y<T>(p.y, p.y_is_f32, n) : 0.0f;
  PackedRange<T> packed;
  uint32_t found = 0;
#pragma unroll 2
  for (int chunk = threadIdx.x; chunk < chunks; chunk += kThreads) {
    T v[kChunk];
    load_chunk<T, true>(x, static_cast<int64_t>(chunk) * kChunk, p.k, v);
    const uint32_t skip = decompose ? hits_of<T, true>(v, threshold, floor) : 0u;
    found |= skip;
    if (decompose && chunk < words * 4) reinterpret_cast<uint8_t *>(mask)[chunk] = static_cast<uint8_t>(skip);
    packed.add_chunk(v, skip, zero_point != 0);
  }
  Range range;
  const uint32_t most = block_reduce<kThreads>(larger_of_pair(packed.most), [](uint32_t a, uint32_t b) { return max(a, b); }, scratch);
  range.infinite = most >= Packed<T>::kInfinity;
  range.high = Packed<T>::unpack(most).x;
  if (zero_point) {
    const float2 low = Packed<T>::unpack(packed.low), high = Packed<T>::unpack(packed.high);
    range.low = block_reduce<kThreads>(fminf(low.x, low.y), [](float a, float b) { return fminf(a, b); }, scratch_f32);
    range.high = block_reduce<kThreads>(fmaxf(high.x, high.y), [](float a, float b) { return fmaxf(a, b); }, scratch_f32);
  }
  const QuantizationParameters parameters(range, zero_point ? INT8_CUDA_ZEROPOINT : INT8_CUDA_ABSMAX);
  int32_t sum = 0;
#pragma unroll 2
  for (int chunk = threadIdx.x; chunk < chunks; chunk += kThreads) {
    T v[kChunk];
    load_chunk<T, true>(x, static_cast<int64_t>(chunk) * kChunk, p.k, v);
    uint32_t q[2];
    const uint32_t out = decompose && chunk < words * 4 ? reinterpret_cast<const uint8_t *>(mask)[chunk] : 0u;
    encode_chunk<T, true>(v, parameters, zero_point != 0, out, p.k - static_cast<int64_t>(chunk) * kChunk, q);
    sum = __dp4a(static_cast<int>(q[0]), 0x01010101, __dp4a(static_cast<int>(q[1]), 0x01010101, sum));
    *reinterpret_cast<uint2 *>(codes + chunk * kChunk) = make_uint2(q[0], q[1]);
  }
  if (p.column_zeros != nullptr) sum = block_reduce<kThreads>(sum, [](int32_t a, int32_t b) { return a + b; }, scratch_i32);
  const int busy = __syncthreads_count(found != 0);

  // A half-warp has the 16 rows of W for one outlier column.
  float outlier_sum = 0.0f;
  if (busy > 0 && busy <= kThreads / 16) {
    // Few: each warp walks its own words of the mask.
    for (int base = warp * 32; base < words; base += kThreads) {
      const uint32_t own = base + lane < words ? mask[base + lane] : 0u;
      for (uint32_t pending = __ballot_sync(0xffffffffu, own != 0); pending != 0; pending &= pending - 1) {
        const int from = __ffs(pending) - 1;
        for (uint32_t bits = __shfl_sync(0xffffffffu, own, from); bits != 0; bits &= bits - 1) {
          const int k = (base + from) * 32 + __ffs(bits) - 1;
          outlier_sum = fmaf(to_f32(x[k]), outlier_weight<T>(p.weight, min(first_n + lane % 16, p.n - 1), k), outlier_sum);
        }
      }
    }
  } else if (busy > 0) {
    // Many: a list first, so that four columns' loads are in flight at a time.
    OutlierColumns<kThreads> columns{mask, mask + words, reinterpret_cast<int32_t *>(mask + 2 * words), 0};
    columns.scan(words, scratch);
    const int row = min(first_n + lane % 16, p.n - 1), first_j = threadIdx.x / 16;
    for (uint32_t first = 0; first < columns.count; first += kListed) {
      const uint32_t listed = columns.make_list(words, first);
#pragma unroll 4
      for (uint32_t j = first_j; j < listed; j += kThreads / 16) {
        const int k = columns.list[j];
        outlier_sum = fmaf(to_f32(x[k]), outlier_weight<T>(p.weight, row, k), outlier_sum);
      }
    }
    outlier_sum += __shfl_xor_sync(0xffffffffu, outlier_sum, 16);
  }

  int32_t acc[4] = {};
  for (int base = warp; base < windows; base += kWarps * kUnroll) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int offset = (base + u * kWarps) * kWindow + part * 16;
      // Column 0 of the eight is the row of x; the others are 0.
      const uint4 xv = group == 0 && offset < inner ? *reinterpret_cast<const uint4 *>(codes + offset) : make_uint4(0, 0, 0, 0);
      const uint4 low = wv[u][0], high = wv[u][1];
      const uint32_t first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
      mma_s8(acc, first, xv.x, xv.y);
      mma_s8(acc, second, xv.z, xv.w);
    }
    load(base + kWarps * kUnroll);
  }
  if (part == 0) {
    partial[warp][group] = acc[0];
    partial[warp][group + 8] = acc[2];
  }
  if (lane < 16) outlier_partial[warp][lane] = outlier_sum;
  __syncthreads();

  if (!writes) return;
  int32_t total = 0;
  float outliers = 0.0f;
#pragma unroll
  for (int s = 0; s < kWarps; ++s) {
    total += partial[s][threadIdx.x];
    outliers += outlier_partial[s][threadIdx.x];
  }
  float value = static_cast<float>(total);
  if (zero_point || p.column_zeros != nullptr) {
    value = corrected(total, parameters.zero, sum, p.column_zeros != nullptr ? p.column_zeros[n] : 0,
                      zero_point ? p.column_sums[n] : 0, p.k);
  }
  value = value * (parameters.scale * (1.0f / 127.0f)) * (column_scale * (1.0f / 127.0f)) + outliers;
  value += bias;
  if (p.accumulate) value += residual;
  store_y<T>(p.y, p.y_is_f32, n, value);
}

template <typename T>
int8_cuda_status launch_one_typed(const GemmParams &p, bool zero_point, cudaStream_t stream, bool overlap) {
  const size_t shared = static_cast<size_t>(round_up(p.k, kWindow)) + ceil_div(p.k, 32) * 8 + kListed * 4;
  INT8_CUDA_TRY(allow_shared(gemv<T>, kGemvInner + kGemvInner / 4 + kListed * 4));
  Launch launch(dim3(static_cast<unsigned>(ceil_div(p.n, 16))), dim3(kThreads), shared, stream, overlap);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, gemv<T>, p, zero_point ? 1 : 0, early_bytes_of(p, overlap)));
  return INT8_CUDA_OK;
}

}  // namespace

int8_cuda_status launch_gemv(const GemmParams &p, int element, bool zero_point, cudaStream_t stream, bool overlap) {
  switch (element) {
    case INT8_CUDA_F16: return launch_one_typed<__half>(p, zero_point, stream, overlap);
    case INT8_CUDA_BF16: return launch_one_typed<__nv_bfloat16>(p, zero_point, stream, overlap);
    default: return INT8_CUDA_UNSUPPORTED;
  }
}

}  // namespace int8_cuda
