// The mask of outlier columns: one bit a column, set where any row's value reaches its threshold.
#include "common/launch.cuh"
#include "prologue/prologue.cuh"
#include "prologue/quantize.cuh"

namespace int8_cuda {
namespace {

constexpr int kMaskThreads = 512;
// Columns of a block: rows are read in pieces of 256 bytes, 16 threads each.
constexpr int kMaskColumns = 128, kMaskParts = kMaskColumns / kChunk, kMaskWords = kMaskColumns / 32;
constexpr int kMaskRows = kMaskThreads / kMaskParts;
// Rows in flight a thread: 512 threads x 8 x 16 bytes = 64 KB a block.
constexpr int kMaskBatch = 8;
// Blocks that share the rows of a column group: a cluster, which joins their findings in shared memory, so that nothing in
// global memory has to be zeroed first.
constexpr int kMaskCluster = 8;

__device__ __forceinline__ void cluster_shape(int *rank, int *size) {
  *rank = 0;
  *size = 1;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(*rank));
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(*size));
#endif
}
__device__ __forceinline__ void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ uint32_t read_shared_of(const uint32_t *word, int rank) {
#if __CUDA_ARCH__ >= 900
  uint32_t value;
  asm volatile("{ .reg .b32 remote; mapa.shared::cluster.u32 remote, %1, %2;\nld.shared::cluster.u32 %0, [remote]; }"
               : "=r"(value)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(word))), "r"(rank)
               : "memory");
  return value;
#else
  return *word;
#endif
}

// One cluster finds kMaskWords words of the mask: 128 columns, all rows.
template <typename T, bool kVector>
__global__ void __launch_bounds__(kMaskThreads) column_mask(PrologueParams p) {
  __shared__ uint32_t found[kMaskWords];
  if (threadIdx.x < kMaskWords) found[threadIdx.x] = 0;
  pdl_trigger();
  pdl_wait();
  __syncthreads();
  int rank, size;
  cluster_shape(&rank, &size);
  const int part = threadIdx.x % kMaskParts;
  const int64_t k = static_cast<int64_t>(blockIdx.x) / size * kMaskColumns + part * kChunk;
  const T *x = static_cast<const T *>(p.x) + k;
  const bool relative = p.rule != INT8_CUDA_RULE_ABSOLUTE;
  const int64_t first = rank * kMaskRows + static_cast<int>(threadIdx.x) / kMaskParts, stride = kMaskRows * size;
  uint32_t hits = 0;
  bool each = k < p.k;
  if constexpr (kVector) {
    if (!relative && k + kChunk <= p.k) {
      // The largest magnitude of each column decides, unless it is a NaN, which hides the others.
      uint32_t most[kChunk / 2] = {};
      for (int64_t m = first; m < p.m; m += stride * kMaskBatch) {
        uint4 batch[kMaskBatch];
#pragma unroll
        for (int i = 0; i < kMaskBatch; ++i) {
          const int64_t row = m + i * stride;
          batch[i] = row < p.m ? *reinterpret_cast<const uint4 *>(x + row * p.ldx) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < kMaskBatch; ++i) {
          most[0] = __vmaxu2(most[0], batch[i].x & kMagnitudes);
          most[1] = __vmaxu2(most[1], batch[i].y & kMagnitudes);
          most[2] = __vmaxu2(most[2], batch[i].z & kMagnitudes);
          most[3] = __vmaxu2(most[3], batch[i].w & kMagnitudes);
        }
      }
      const uint32_t floor = Packed<T>::at_least(p.threshold);
      each = false;
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const uint32_t bits = i % 2 == 0 ? most[i / 2] & 0xffffu : most[i / 2] >> 16;
        hits |= (bits >= floor ? 1u : 0u) << i;
        each = each || bits > Packed<T>::kInfinity;
      }
      if (each) hits = 0;
    }
  }
  if (each) {
    for (int64_t m = first; m < p.m; m += stride) {
      T v[kChunk];
      load_chunk<T, kVector>(x + m * p.ldx - k, k, p.k, v);
      const float threshold = relative ? p.thresholds[m] : p.threshold;
      hits |= hits_of<T, kVector>(v, threshold, floor_of<T, kVector>(threshold));
    }
  }
  // Columns beyond k were read as 0, which a positive threshold never takes.
  if (hits != 0) atomicOr(&found[part / 4], hits << (part % 4 * kChunk));
  __syncthreads();
  if (size > 1) cluster_barrier();
  const int64_t word = static_cast<int64_t>(blockIdx.x) / size * kMaskWords + threadIdx.x;
  if (rank == 0 && threadIdx.x < kMaskWords && word * 32 < p.k) {
    uint32_t all = 0;
    for (int i = 0; i < size; ++i) all |= read_shared_of(&found[threadIdx.x], i);
    p.outliers.mask[word] = all;
  }
  if (size > 1) cluster_barrier();  // no block ends while another reads its shared memory
}

template <typename T, bool kVector>
int8_cuda_status launch_typed(const PrologueParams &p, cudaStream_t stream, bool overlap) {
  // Clusters exist on the devices that have PDL.
  const int64_t useful = ceil_div<int64_t>(p.m, 2 * kMaskRows);  // two rows a thread before another block helps
  const int cluster = !overlap ? 1 : useful >= 8 ? kMaskCluster : useful >= 4 ? 4 : useful >= 2 ? 2 : 1;
  const unsigned blocks = static_cast<unsigned>(ceil_div<int64_t>(p.k, kMaskColumns) * cluster);
  Launch launch(dim3(blocks), dim3(kMaskThreads), 0, stream, overlap, cluster);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, column_mask<T, kVector>, p));
  return INT8_CUDA_OK;
}

}  // namespace

int8_cuda_status launch_outlier_mask(const PrologueParams &p, bool vector, cudaStream_t stream, bool overlap) {
  switch (p.element) {
    case INT8_CUDA_F16: return vector ? launch_typed<__half, true>(p, stream, overlap) : launch_typed<__half, false>(p, stream, overlap);
    case INT8_CUDA_BF16:
      return vector ? launch_typed<__nv_bfloat16, true>(p, stream, overlap) : launch_typed<__nv_bfloat16, false>(p, stream, overlap);
    case INT8_CUDA_F32: return launch_typed<float, false>(p, stream, overlap);
    default: return INT8_CUDA_INVALID;
  }
}

}  // namespace int8_cuda
