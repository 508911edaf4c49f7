// Rotation of queries and keys in place; keys and values into the pages of the cache.
//
// A thread has a unit of a head: kVector pairs (i, i + half), or kVector elements behind the rotated ones.
#include "attention/attention.cuh"

namespace int8_cuda {
namespace {

constexpr int kThreads = 128;

template <typename E, int kVector>
struct alignas(sizeof(E) * kVector) Vector {
  E element[kVector];
};

// True where a finite value is infinite in T.
template <typename T, typename E, int kVector>
__device__ __forceinline__ bool convert(const float (&from)[kVector], Vector<T, kVector> *to) {
  bool overflow = false;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    // The cache holds the element as it stands in qkv: rounded to E, then to T.
    to->element[i] = from_f32<T>(to_f32(from_f32<E>(from[i])));
    overflow |= isfinite(from[i]) && isinf(to_f32(to->element[i]));
  }
  return overflow;
}

template <typename E, int kVector>
__device__ __forceinline__ Vector<E, kVector> rounded(const float (&from)[kVector]) {
  Vector<E, kVector> to;
#pragma unroll
  for (int i = 0; i < kVector; ++i) to.element[i] = from_f32<E>(from[i]);
  return to;
}

// Grid: x rows, y units of a row.
template <typename E, typename T, int kVector>
__global__ void __launch_bounds__(kThreads) append_kv(const __grid_constant__ int8_cuda_append_kv_params p) {
  using FromVector = Vector<E, kVector>;
  using ToVector = Vector<T, kVector>;
  pdl_trigger();
  pdl_wait();
  const int8_cuda_kv_cache &cache = p.cache;
  const int row = static_cast<int>(blockIdx.x), size = cache.head_size, half = p.cos != nullptr ? p.half : 0;
  // There are at most as many segments as rows, and so as blocks.
  if (const int64_t s = static_cast<int64_t>(row) * kThreads + threadIdx.x; blockIdx.y == 0 && s < p.batch.segments) {
    const int end = p.batch.segment_starts[s + 1];
    if (end > p.batch.segment_starts[s]) cache.lengths[p.batch.segment_sequences[s]] = p.batch.positions[end - 1] + 1;
  }

  const int pairs = half / kVector, units = pairs + (size - 2 * half) / kVector;
  // Without a rotation the queries need no thread.
  const int first_head = half > 0 ? 0 : p.heads;
  const int index = static_cast<int>(blockIdx.y * kThreads + threadIdx.x);
  const int head = first_head + index / units, unit = index % units;
  if (head >= p.heads + 2 * cache.kv_heads) return;
  const bool is_query = head < p.heads, is_value = head >= p.heads + cache.kv_heads, is_pair = unit < pairs;
  if (is_query && !is_pair) return;

  const int position = p.batch.positions[row], sequence = p.batch.sequences[row];
  if (position < 0 || position >= cache.sequence_pages * kPagePositions) return;
  const int i = is_pair ? unit * kVector : 2 * half + (unit - pairs) * kVector;
  E *from = static_cast<E *>(p.qkv) + row * p.ld + static_cast<int64_t>(head) * size + i;
  const FromVector low = *reinterpret_cast<const FromVector *>(from);
  float x[kVector], y[kVector];
#pragma unroll
  for (int e = 0; e < kVector; ++e) x[e] = to_f32(low.element[e]);
  if (is_pair) {
    const FromVector high = *reinterpret_cast<const FromVector *>(from + half);
#pragma unroll
    for (int e = 0; e < kVector; ++e) y[e] = to_f32(high.element[e]);
    if (!is_value) {
      const float *cos = p.cos + static_cast<int64_t>(position) * half + i, *sin = p.sin + static_cast<int64_t>(position) * half + i;
#pragma unroll
      for (int e = 0; e < kVector; ++e) rotate(&x[e], &y[e], cos[e], sin[e]);
      *reinterpret_cast<FromVector *>(from) = rounded<E>(x);
      *reinterpret_cast<FromVector *>(from + half) = rounded<E>(y);
    }
  }
  if (is_query) return;

  const int page = cache.page_table[sequence * cache.sequence_pages + position / kPagePositions];
  const int kv_head = head - p.heads - (is_value ? cache.kv_heads : 0);
  T *to = static_cast<T *>(cache.data) + (((p.layer * cache.pages + page) * 2 + (is_value ? 1 : 0)) * cache.kv_heads + kv_head) * kPagePositions * size +
          static_cast<int64_t>(position % kPagePositions) * size + i;
  ToVector out;
  bool overflow = convert<T, E>(x, &out);
  *reinterpret_cast<ToVector *>(to) = out;
  if (is_pair) {
    overflow |= convert<T, E>(y, &out);
    *reinterpret_cast<ToVector *>(to + half) = out;
  }
  if (overflow) *cache.overflow = 1;
}

template <typename E, typename T, int kVector>
int8_cuda_status launch_vector(const int8_cuda_append_kv_params &p, bool overlap) {
  const int half = p.cos != nullptr ? p.half : 0;
  const int units = half / kVector + (p.cache.head_size - 2 * half) / kVector;
  const int64_t heads = (half > 0 ? p.heads : 0) + 2 * static_cast<int64_t>(p.cache.kv_heads);
  const dim3 grid(static_cast<unsigned>(p.batch.rows), static_cast<unsigned>(ceil_div<int64_t>(heads * units, kThreads)));
  Launch launch(grid, dim3(kThreads), 0, static_cast<cudaStream_t>(p.stream), overlap);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, append_kv<E, T, kVector>, p));
  return INT8_CUDA_OK;
}

template <typename E, typename T>
int8_cuda_status launch_typed(const int8_cuda_append_kv_params &p, bool overlap) {
  // 16 bytes of the wider type.
  constexpr int kVector = sizeof(E) > 2 || sizeof(T) > 2 ? 4 : 8;
  const auto whole = [&](int vector) {
    const auto multiple = [](const void *pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; };
    return p.cache.head_size % vector == 0 && (p.cos == nullptr || p.half % vector == 0) && p.ld % vector == 0 &&
           multiple(p.qkv, vector * sizeof(E)) && multiple(p.cache.data, vector * sizeof(T));
  };
  return whole(kVector) ? launch_vector<E, T, kVector>(p, overlap) : launch_vector<E, T, 1>(p, overlap);
}

template <typename E>
int8_cuda_status launch_from(const int8_cuda_append_kv_params &p, bool overlap) {
  switch (p.cache.element) {
    case INT8_CUDA_F16: return launch_typed<E, __half>(p, overlap);
    case INT8_CUDA_BF16: return launch_typed<E, __nv_bfloat16>(p, overlap);
    default: return launch_typed<E, float>(p, overlap);
  }
}

}  // namespace

int8_cuda_status launch_append_kv(const int8_cuda_append_kv_params &p, bool overlap) {
  switch (p.element) {
    case INT8_CUDA_F16: return launch_from<__half>(p, overlap);
    case INT8_CUDA_BF16: return launch_from<__nv_bfloat16>(p, overlap);
    default: return launch_from<float>(p, overlap);
  }
}

}  // namespace int8_cuda
