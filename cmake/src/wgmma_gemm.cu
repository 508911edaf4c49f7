// The fused layer on sm_90a: one persistent kernel computes
//   acc (i32) = q_x * q_w^T           wgmma s8, k-steps of 128 bytes
//   f (f32)   = acc * s_x [* s_w]     in place, in the accumulators' registers
//   f        += x_O * w_O^T           wgmma f16|bf16 over the compacted outlier columns, k-steps of 64 columns
//   y         = f [* s_w] + bias      rounded once
// One warpgroup issues the copies, kBm/64 others multiply 64 rows each. Both kinds of k-step fill the same shared-memory
// stages: 128 bytes a row. How many steps of 16 bits there are is read from the device, so no host waits for it.
#include "gemm.cuh"
#include "hopper.cuh"
#include "tensor_map.cuh"
#include "wgmma.cuh"

namespace int8_cuda {
namespace {

// Bytes of K in one stage: the widest row that the swizzle takes.
constexpr int kStepBytes = 128;
constexpr int kOutlierStep = kStepBytes / 2;
// Columns of y that one copy stores: 128 bytes.
constexpr int kStoreColumns = 64;
// Clusters along M that run side by side before the next tile of N: 8 x 2 x 128 rows of x and about as many of W are in
// use at a time, some 16 MB at K = 4096, which stays in the L2 cache.
constexpr int kPanel = 8;
// k-steps whose weights set out before the predecessor has ended. With more, of all blocks at once, they are in the way of
// what is needed first: 1024x4096x4096 takes 1.4 us longer with six.
constexpr int kEarlySteps = 2;
// Output blocks a warpgroup has on their way out at a time. All four of a 256-column tile would cost a stage.
constexpr int kStores = 2;

template <int kBm, int kBn, int kStages>
struct Shared {
  uint8_t a[kStages][kBm * kStepBytes];
  uint8_t b[kStages][kBn * kStepBytes];
  uint8_t c[kBm / 64][kStores][64 * kStoreColumns * 2];
  float4 columns[kBn / 2];  // of two neighbours: scale, scale, bias, bias
  uint64_t full[kStages];
  uint64_t empty[kStages];
};

struct Tiles {
  int clusters_m, tiles_n;

  __device__ __forceinline__ int count() const { return clusters_m * tiles_n; }
  // Walks panels of kPanel clusters along M, then along N.
  __device__ __forceinline__ void at(int index, int *cluster_m, int *tile_n) const {
    const int panel = index / (kPanel * tiles_n), rest = index % (kPanel * tiles_n);
    const int width = min(kPanel, clusters_m - panel * kPanel);
    *cluster_m = panel * kPanel + rest % width;
    *tile_n = rest / width;
  }
};

template <typename T, int kBm, int kBn, int kCluster, int kStages>
__global__ void __launch_bounds__((kBm / 64 + 1) * 128, 1)
    wgmma_layer(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_w,
                const __grid_constant__ CUtensorMap map_outlier_x, const __grid_constant__ CUtensorMap map_outlier_w,
                const __grid_constant__ CUtensorMap map_y, const __grid_constant__ GemmParams p, int store_by_copy) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  // The swizzle counts from multiples of 1024 bytes. Without static shared memory the dynamic one starts at such.
  extern __shared__ __align__(1024) uint8_t raw[];
  using Memory = Shared<kBm, kBn, kStages>;
  Memory &shared = *reinterpret_cast<Memory *>(raw);
  if (shared_address(raw) % 1024 != 0) __trap();
  constexpr int kGroups = kBm / 64;
  constexpr uint32_t kStageBytes = (kBm + kBn) * kStepBytes;
  const int group = static_cast<int>(threadIdx.x) / 128 - 1;
  const uint32_t rank = kCluster > 1 ? cluster_rank() : 0;

  const Tiles tiles{ceil_div(p.m, kBm * kCluster), ceil_div(p.n, kBn)};
  const int steps = ceil_div(p.k, kStepBytes);
  const int first = static_cast<int>(blockIdx.x) / kCluster, stride = static_cast<int>(gridDim.x) / kCluster;

  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      barrier_init(&shared.full[s], 1);
      barrier_init(&shared.empty[s], kCluster * kGroups);
    }
    barrier_init_fence();
    for (const CUtensorMap *map : {&map_a, &map_w, &map_outlier_x, &map_outlier_w}) prefetch_map(*map);
  }
  if (kCluster > 1) cluster_sync(); else __syncthreads();
  let_successor_start();
  // Parameters that are not needed before the first tile ends: each of their cache lines would make everybody wait then.
  asm volatile("" ::"l"(p.row_scales), "l"(p.column_scales), "l"(p.row_zeros), "l"(p.bias), "l"(p.y), "l"(p.ldy), "r"(p.n),
               "l"(p.outlier_count), "l"(p.outlier_w), "r"(p.weights_are_codes), "l"(p.state), "r"(store_by_copy));
  // More outlier columns than the compact operands hold: the MMA kernel, launched after this one, does the work. Where that
  // cannot be, nobody waits for the count before the first tile's products are done.
  const bool bounded = p.outlier_ld < p.k;
  auto count_outliers = [&] {
    uint32_t count = 0;
    if (p.outlier_count != nullptr) asm volatile("ld.global.u32 %0, [%1];" : "=r"(count) : "l"(p.outlier_count) : "memory");
    return static_cast<int>(count);
  };
  auto end_of = [&](int outliers) { return bounded && outliers > p.outlier_ld ? 0 : tiles.count(); };

  if (group < 0) {
    if (kGroups > 1) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0) {
      uint32_t stage = 0, phase = 0;
      int outliers = 0, end = tiles.count();
      // The weights are nobody's output in flight: those of the first steps set out before the predecessor has ended.
      const int early = min(steps, kEarlySteps);
      for (int index = first; index < end; index += stride) {
        int cluster_m, tile_n;
        tiles.at(index, &cluster_m, &tile_n);
        const int row = (cluster_m * kCluster + static_cast<int>(rank)) * kBm;
        // Each block of the cluster fetches its share of W's rows for all of them.
        constexpr int kShare = kBn / kCluster;
        const int column = tile_n * kBn + static_cast<int>(rank) * kShare;
        auto fetch_b = [&](const CUtensorMap &b, int k, int b_row) {
          barrier_expect(&shared.full[stage], kStageBytes);
          uint8_t *to = shared.b[stage] + rank * kShare * kStepBytes;
          if (kCluster > 1) {
            copy_in_multicast(to, b, k, b_row, &shared.full[stage], (1u << kCluster) - 1);
          } else {
            copy_in(to, b, k, b_row, &shared.full[stage]);
          }
        };
        auto advance = [&] {
          if (++stage == kStages) {
            stage = 0;
            phase ^= 1;
          }
        };
        auto fetch = [&](const CUtensorMap &a, const CUtensorMap &b, int k, int a_row, int b_row) {
          barrier_wait(&shared.empty[stage], phase ^ 1);
          fetch_b(b, k, b_row);
          copy_in(shared.a[stage], a, k, a_row, &shared.full[stage]);
          advance();
        };
        static_assert(kEarlySteps <= kStages, "a stage for each");
        int step = 0;
        if (index == first) {
#pragma unroll 1
          for (; step < early; ++step, ++stage) fetch_b(map_w, step * kStepBytes, column);
          wait_for_predecessor();
          if (bounded) end = end_of(outliers = count_outliers());
          stage = 0;
#pragma unroll 1
          for (int s = 0; s < early; ++s) {
            copy_in(shared.a[stage], map_a, s * kStepBytes, row, &shared.full[stage]);
            advance();
          }
          // Nothing may be on its way into a block that has ended.
          if (index >= end) {
#pragma unroll 1
            for (int s = 0; s < early; ++s) barrier_wait(&shared.full[s], 0);
            break;
          }
        }
#pragma unroll 1
        for (; step < steps; ++step) fetch(map_a, map_w, step * kStepBytes, row, column);
        if (index == first && !bounded) outliers = count_outliers();
        const int outlier_steps = ceil_div(outliers, kOutlierStep);
        // A panel of outlier columns is one k-step; rows beyond its end are the next panel's and reach no output.
#pragma unroll 1
        for (int panel = 0; panel < outlier_steps; ++panel) {
          fetch(map_outlier_x, map_outlier_w, 0, panel * p.m + row, panel * p.n + column);
        }
      }
    } else if (blockIdx.x == 0 && threadIdx.x >= 32) {
      wait_for_predecessor();
      for (int i = static_cast<int>(threadIdx.x) - 32; i < p.state_words; i += 96) p.state[i] = 0;
    }
  } else {
    if (kGroups > 1) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int thread = static_cast<int>(threadIdx.x) % 128, warp = thread / 32, lane = thread % 32;
    uint32_t stage = 0, phase = 0;
    auto release = [&](uint32_t s) {
      if (thread < kCluster) barrier_arrive(&shared.empty[s], thread);
    };
    auto advance = [&] {
      if (++stage == kStages) {
        stage = 0;
        phase ^= 1;
      }
    };
    wait_for_predecessor();
    int outliers = count_outliers();
    const int end = bounded ? end_of(outliers) : tiles.count();
    for (int index = first; index < end; index += stride) {
      int cluster_m, tile_n;
      tiles.at(index, &cluster_m, &tile_n);
      const int tile_row = (cluster_m * kCluster + static_cast<int>(rank)) * kBm + group * 64;
      const int column = tile_n * kBn;
      // This thread holds columns 8j + 2(lane%4) and the next of rows row0 and row0 + 8.
      const int row0 = tile_row + warp * 16 + lane / 4, row1 = row0 + 8;
      // Scales and bias are asked for here and not looked at before the products are done. A thread brings one column's.
      const float raw0 = row0 < p.m ? p.row_scales[row0] : 0.0f, raw1 = row1 < p.m ? p.row_scales[row1] : 0.0f;
      static_assert(kBn <= kGroups * 128, "a thread for each column");
      const int own = group * 128 + thread;
      const bool brings = own < kBn && column + own < p.n;
      const float own_scale = brings ? p.column_scales[column + own] : 0.0f;
      const float own_bias = brings && p.bias != nullptr ? p.bias[column + own] : 0.0f;

      int32_t acc[kBn / 2];
      // Cleared rather than overwritten by the first product: an undefined start makes the compiler serialise them all.
#pragma unroll
      for (int i = 0; i < kBn / 2; ++i) acc[i] = 0;
      pin(acc);
      uint32_t previous = 0;
      for (int step = 0; step < steps; ++step) {
        barrier_wait(&shared.full[stage], phase);
        const uint64_t a = wgmma_descriptor(shared_address(shared.a[stage]) + group * 64 * kStepBytes);
        const uint64_t b = wgmma_descriptor(shared_address(shared.b[stage]));
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; ++k) Wgmma<kBn>::s8(acc, a + 2 * k, b + 2 * k);
        wgmma_commit();
        // One group of products stays in flight; the stage of the one before is free.
        wgmma_wait<1>();
        if (step > 0) release(previous);
        previous = stage;
        advance();
      }
      wgmma_wait<0>();
      pin(acc);
      release(previous);

      // So that nothing of this is computed, and waited for, before.
      asm volatile("" : "+r"(outliers)::"memory");
      const int outlier_steps = ceil_div(outliers, kOutlierStep);
      const float scale0 = raw0 * (1.0f / 127.0f), scale1 = raw1 * (1.0f / 127.0f);
      // All warpgroups have read the last tile's scales. With more steps than stages they have in any case: the last stage was
      // filled only after all had been at work on this tile.
      if (kGroups > 1 && steps <= kStages) named_barrier(1 + kGroups, kGroups * 128);
      if (own < kBn) {
        float *pair = reinterpret_cast<float *>(&shared.columns[own / 2]) + own % 2;
        pair[0] = own_scale * (1.0f / 127.0f);
        pair[2] = own_bias;
      }

      // From here on acc holds the bits of f32.
      const auto f = [&](int i) { return __int_as_float(acc[i]); };
      if (p.row_zeros == nullptr && p.column_zeros == nullptr) {
#pragma unroll
        for (int i = 0; i < kBn / 2; ++i) acc[i] = __float_as_int(static_cast<float>(acc[i]));
      } else {
        const bool inside0 = row0 < p.m, inside1 = row1 < p.m;
        const int za0 = inside0 && p.row_zeros ? p.row_zeros[row0] : 0, za1 = inside1 && p.row_zeros ? p.row_zeros[row1] : 0;
        const int sa0 = inside0 && p.column_zeros ? p.row_sums[row0] : 0;
        const int sa1 = inside1 && p.column_zeros ? p.row_sums[row1] : 0;
#pragma unroll
        for (int j = 0; j < kBn / 8; ++j) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int n = column + 8 * j + 2 * (lane % 4) + h;
            const int zw = p.column_zeros != nullptr && n < p.n ? p.column_zeros[n] : 0;
            const int sw = p.row_zeros != nullptr && n < p.n ? p.column_sums[n] : 0;
            acc[4 * j + h] = __float_as_int(corrected(acc[4 * j + h], za0, sa0, zw, sw, p.k));
            acc[4 * j + 2 + h] = __float_as_int(corrected(acc[4 * j + 2 + h], za1, sa1, zw, sw, p.k));
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kBn / 2; ++i) acc[i] = __float_as_int(f(i) * (i / 2 % 2 == 0 ? scale0 : scale1));
      named_barrier(1 + kGroups, kGroups * 128);  // scale and bias become visible

      if (outlier_steps > 0) {
        if (!p.weights_are_codes) {
#pragma unroll
          for (int j = 0; j < kBn / 8; ++j) {
            const float2 s = *reinterpret_cast<const float2 *>(&shared.columns[4 * j + lane % 4]);
            acc[4 * j] = __float_as_int(f(4 * j) * s.x);
            acc[4 * j + 1] = __float_as_int(f(4 * j + 1) * s.y);
            acc[4 * j + 2] = __float_as_int(f(4 * j + 2) * s.x);
            acc[4 * j + 3] = __float_as_int(f(4 * j + 3) * s.y);
          }
        }
        pin(acc);
        const int whole = outliers / kOutlierStep;
#pragma unroll 1
        for (int step = 0; step < whole; ++step) {
          barrier_wait(&shared.full[stage], phase);
          const uint64_t a = wgmma_descriptor(shared_address(shared.a[stage]) + group * 64 * kStepBytes);
          const uint64_t b = wgmma_descriptor(shared_address(shared.b[stage]));
          wgmma_fence();
#pragma unroll
          for (int k = 0; k < 4; ++k) Wgmma<kBn>::accumulate(acc, a + 2 * k, b + 2 * k, T{});
          wgmma_commit();
          wgmma_wait<1>();
          if (step > 0) release(previous);
          previous = stage;
          advance();
        }
        // The last panel has zeros behind its columns: no product needs more than the 16 columns it takes at a time.
        if (whole < outlier_steps) {
          barrier_wait(&shared.full[stage], phase);
          const uint64_t a = wgmma_descriptor(shared_address(shared.a[stage]) + group * 64 * kStepBytes);
          const uint64_t b = wgmma_descriptor(shared_address(shared.b[stage]));
#pragma unroll 1
          for (int k = 0; k < ceil_div(outliers - whole * kOutlierStep, 16); ++k) {
            wgmma_fence();
            Wgmma<kBn>::accumulate(acc, a + 2 * k, b + 2 * k, T{});
            wgmma_commit();
          }
          if (whole > 0) {
            wgmma_wait<1>();
            release(previous);
          }
          previous = stage;
          advance();
        }
        wgmma_wait<0>();
        pin(acc);
        release(previous);
      }
      const bool scale_last = outlier_steps == 0 || p.weights_are_codes;
#pragma unroll
      for (int j = 0; j < kBn / 8; ++j) {
        const float4 c = shared.columns[4 * j + lane % 4];
        const float sx = scale_last ? c.x : 1.0f, sy = scale_last ? c.y : 1.0f;
        acc[4 * j] = __float_as_int(fmaf(f(4 * j), sx, c.z));
        acc[4 * j + 1] = __float_as_int(fmaf(f(4 * j + 1), sy, c.w));
        acc[4 * j + 2] = __float_as_int(fmaf(f(4 * j + 2), sx, c.z));
        acc[4 * j + 3] = __float_as_int(fmaf(f(4 * j + 3), sy, c.w));
      }

      if (store_by_copy) {
        // Matrices of 8x8: rows 0-7 and 8-15 of column block j, then of block j + 1.
        const int local_row = warp * 16 + (lane / 8 % 2) * 8 + lane % 8;
#pragma unroll
        for (int c = 0; c < kBn / kStoreColumns; ++c) {
          uint8_t *block = shared.c[group][c % kStores];
          if (thread == 0) copy_out_wait_read<kStores - 1>();
          named_barrier(1 + group, 128);
#pragma unroll
          for (int j = c * 8; j < c * 8 + 8; j += 2) {
            const int chunk = j % 8 + lane / 16;
            const uint32_t address = shared_address(block) + local_row * 128 + (chunk ^ (local_row % 8)) * 16;
            stmatrix_x4(address, pack2<T>(f(4 * j), f(4 * j + 1)), pack2<T>(f(4 * j + 2), f(4 * j + 3)),
                        pack2<T>(f(4 * j + 4), f(4 * j + 5)), pack2<T>(f(4 * j + 6), f(4 * j + 7)));
          }
          fence_for_copy_engine();
          named_barrier(1 + group, 128);
          if (thread == 0) {
            if (tile_row < p.m && column + c * kStoreColumns < p.n) {
              copy_out(map_y, column + c * kStoreColumns, tile_row, block);
            }
            copy_out_commit();
          }
        }
      } else {
        T *y = static_cast<T *>(p.y);
#pragma unroll
        for (int i = 0; i < kBn / 2; ++i) {
          const int n = column + 8 * (i / 4) + 2 * (lane % 4) + i % 2;
          const int row = i / 2 % 2 == 0 ? row0 : row1;
          if (row < p.m && n < p.n) y[row * p.ldy + n] = from_f32<T>(f(i));
        }
        // With one warpgroup nothing else keeps the next tile's scales from overwriting these.
        if (kGroups == 1) named_barrier(1 + group, 128);
      }
    }
    if (thread == 0) copy_out_wait();
  }
  // No block of a cluster may end while another can still arrive at its barriers.
  if (kCluster > 1) cluster_sync();
#endif
}

// A row-major matrix [rows, columns], ld elements between rows, read or written in boxes of box_rows x 128 bytes.
int8_cuda_status encode(CUtensorMap *map, CUtensorMapDataType type, int element_bytes, const void *base, int64_t rows,
                        int64_t columns, int64_t ld, int box_rows) {
  EncodeTiled encoder = nullptr;
  INT8_CUDA_PASS(find_encoder(&encoder));
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(ld * element_bytes)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(kStepBytes / element_bytes), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult result = encoder(map, type, 2, const_cast<void *>(base), sizes, strides, box, steps,
                                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return driver_status(result);
}

template <typename T, int kBm, int kBn, int kCluster, int kStages>
int8_cuda_status launch_tile(const GemmParams &p, CUtensorMapDataType type, cudaStream_t stream, bool overlap) {
  CUtensorMap a, w, outlier_x{}, outlier_w{}, y{};
  const int64_t padded = round_up<int64_t>(p.k, 16);
  INT8_CUDA_PASS(encode(&a, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, p.a, p.m, padded, p.lda, kBm));
  INT8_CUDA_PASS(encode(&w, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, p.w, p.n, padded, p.ldw, kBn / kCluster));
  if (p.outlier_count != nullptr) {
    const int64_t panels = p.outlier_ld / kOutlierStep;
    INT8_CUDA_PASS(encode(&outlier_x, type, 2, p.outlier_x, p.m * panels, kOutlierStep, kOutlierStep, kBm));
    INT8_CUDA_PASS(encode(&outlier_w, type, 2, p.outlier_w, p.n * panels, kOutlierStep, kOutlierStep, kBn / kCluster));
  }
  const bool store_by_copy = p.ldy % 8 == 0 && reinterpret_cast<uintptr_t>(p.y) % 16 == 0;
  if (store_by_copy) INT8_CUDA_PASS(encode(&y, type, 2, p.y, p.m, p.n, p.ldy, 64));

  Device device;
  INT8_CUDA_PASS(current_device(&device));
  auto *kernel = wgmma_layer<T, kBm, kBn, kCluster, kStages>;
  constexpr size_t kBytes = sizeof(Shared<kBm, kBn, kStages>);
  static_assert(kBytes <= 227 * 1024, "more shared memory than a block can have");
  INT8_CUDA_TRY(allow_shared(kernel, kBytes));
  const int64_t clusters = ceil_div<int64_t>(p.m, kBm * kCluster) * ceil_div<int64_t>(p.n, kBn);
  const int64_t resident = device.multiprocessors / kCluster;
  const unsigned blocks = static_cast<unsigned>((clusters < resident ? clusters : resident) * kCluster);
  Launch launch(dim3(blocks), dim3((kBm / 64 + 1) * 128), kBytes, stream, overlap, kCluster);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, kernel, a, w, outlier_x, outlier_w, y, p, store_by_copy ? 1 : 0));
  return INT8_CUDA_OK;
}

// Stages: as many as fit into 227 KB beside the output tile. The small tile, which waits for memory, needs no more than 100 KB
// in flight and leaves room for the blocks of the quantisation before it.
template <typename T>
int8_cuda_status launch_typed(const GemmParams &p, CUtensorMapDataType type, int algorithm, cudaStream_t stream,
                              bool overlap) {
  switch (algorithm) {
    case INT8_CUDA_WGMMA_128X256: return launch_tile<T, 128, 256, 2, 4>(p, type, stream, overlap);
    case INT8_CUDA_WGMMA_128X128: return launch_tile<T, 128, 128, 1, 6>(p, type, stream, overlap);
    case INT8_CUDA_WGMMA_64X128: return launch_tile<T, 64, 128, 1, 5>(p, type, stream, overlap);
    default: return INT8_CUDA_INVALID;
  }
}

}  // namespace

int8_cuda_status launch_wgmma(const GemmParams &p, int element, int algorithm, cudaStream_t stream, bool overlap) {
  switch (element) {
    case INT8_CUDA_F16:
      return launch_typed<__half>(p, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, algorithm, stream, overlap);
    case INT8_CUDA_BF16:
      return launch_typed<__nv_bfloat16>(p, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, algorithm, stream, overlap);
    default: return INT8_CUDA_UNSUPPORTED;
  }
}

}  // namespace int8_cuda
