// WGMMA (sm_90a), f16 and bf16: one persistent kernel computes
//   acc (i32) = q_x * q_w^T           wgmma s8, k-steps of 128 bytes
//   f (f32)   = acc * s_x [* s_w]     in place, in the accumulators' registers
//   f        += x_O * w_O^T           wgmma f16|bf16 over the compact outlier columns, k-steps of 64 columns
//   y         = f [* s_w] + bias      rounded once
// One warpgroup issues the TMA loads (producer), the others multiply (consumers). Both kinds of k-step fill the same
// shared-memory stages: 128 bytes a row. The number of 16-bit k-steps is read on the device, so the host does not wait for it.
//
// Schedules (Form). Cooperative: the consumer warpgroups share a tile, 64 rows each. Ping-pong: each of two has a tile of its
// own, so that the epilogue of one runs beside the other's products. Why ping-pong is safe:
//   - The producer fills the ring of stages in the order of tiles, and a stage belongs to one tile's warpgroup. The ring alone
//     orders the main loops: a tile's k-steps arrive after those of the tile before.
//   - No wait is more than one phase behind its mbarrier: a wait by parity cannot tell a phase from the one two before. So each
//     warpgroup has full mbarriers of its own, sees all their phases, and keeps a parity for each stage (Ring).
//   - Only the producer waits for a stage's empty mbarrier, once a filling, whichever warpgroup empties it.
//   - No cycle of waits: the producer waits for the warpgroup of the oldest filled stage alone, and that one waits for nothing
//     but stages at or before its own place in the ring: products, epilogue and stores wait for no other warpgroup.
#include "common/launch.cuh"
#include "common/tensor_map.cuh"
#include "common/tma.cuh"
#include "epilogue/store.cuh"
#include "epilogue/zero_point.cuh"
#include "gemm/gemm.cuh"
#include "gemm/wgmma.cuh"

namespace int8_cuda {
namespace {

// Bytes of K in one stage: the widest row of the swizzle.
constexpr int kStepBytes = 128;
constexpr int kOutlierStep = kStepBytes / 2;
// Clusters along M that run side by side before the next tile of N: with tiles of 128x256, 8 x 2 x 128 rows of x and about as
// many of W are in use at a time, some 16 MB at K = 4096, which stays in the L2 cache.
constexpr int kPanel = 8;
// A form of the kernel: the tile, how many blocks of a cluster share its weights (along M), and who multiplies it.
template <int kBm_, int kBn_, int kCluster_, int kStages_, bool kPingPong_ = false, int kEarlySteps_ = 2>
struct Form {
  static constexpr int kBm = kBm_, kBn = kBn_, kCluster = kCluster_, kStages = kStages_;
  // k-steps whose weights are loaded before the PDL wait. With more, those of large tiles delay the loads that are needed
  // first: 1024x4096x4096 takes 1.4 us longer with six.
  static constexpr int kEarlySteps = kEarlySteps_;
  // Ping-pong schedule; else cooperative.
  static constexpr bool kPingPong = kPingPong_;
  // Consumer warpgroups, and those that share a tile.
  static constexpr int kGroups = kPingPong ? 2 : kBm / 64, kCooperating = kPingPong ? 1 : kGroups;
  // Blocks of 64 rows that a warpgroup multiplies.
  static constexpr int kRowBlocks = kBm / 64 / kCooperating;
  // Columns of y in one TMA store, at most 128 bytes, and staging blocks of them a warpgroup. The blocks of all tiles use the
  // staging blocks in turn, so that one is free once at most the others' stores still read.
  static constexpr int kStoreColumns = kBn < 64 ? kBn : 64, kTileStores = kRowBlocks * (kBn / kStoreColumns);
  static constexpr int kStores = kTileStores > 1 ? 2 : 1;
  static_assert(kTileStores % kStores == 0, "the order of staging blocks continues from tile to tile");
  static constexpr int kThreads = (kGroups + 1) * 128;
  static_assert(kBn <= kCooperating * 128, "a thread for each column's scale and bias");
  static_assert(kEarlySteps <= kStages && kStages <= 32, "a stage for each early step, a bit for each stage");
};

// Rows of x in a tile. Rows beyond m are not loaded: TMA takes longer to fill them with zeros than to load others
// (16x16384x4096: 1.5 us). The bytes in their place reach no row of y. Tiles of 64 rows partition the rows evenly.
template <typename F>
__host__ __device__ constexpr int rows_of_tile(int m) {
  return m < F::kBm ? m : F::kBm == 64 ? ceil_div(m, ceil_div(m, 64)) : F::kBm;
}

template <typename F>
struct Shared {
  uint8_t a[F::kStages][F::kBm * kStepBytes];
  uint8_t b[F::kStages][F::kBn * kStepBytes];
  uint8_t c[F::kGroups][F::kStores][64 * F::kStoreColumns * 2];
  float4 columns[F::kGroups / F::kCooperating][F::kBn / 2];  // of two neighbours: scale, scale, bias, bias
  uint64_t full[F::kGroups / F::kCooperating][F::kStages];
  uint64_t empty[F::kStages];
};

// A place in the ring of stages, and for each stage the parity of its next wait.
template <int kStages>
struct Ring {
  uint32_t stage = 0, phases = 0;

  __device__ __forceinline__ uint32_t phase() const { return phases >> stage & 1u; }
  __device__ __forceinline__ void advance() {
    phases ^= 1u << stage;
    if (++stage == kStages) stage = 0;
  }
  // Past the stages of another warpgroup's tile.
  __device__ __forceinline__ void pass(int count) { stage = (stage + count) % kStages; }
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

template <typename T, typename F>
__global__ void __launch_bounds__(F::kThreads, 1)
    wgmma_gemm(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_w,
                const __grid_constant__ CUtensorMap map_outlier_x, const __grid_constant__ CUtensorMap map_outlier_w,
                const __grid_constant__ CUtensorMap map_y, const __grid_constant__ GemmParams p, int store_by_tma) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  // The swizzle counts from multiples of 1024 bytes. Without static shared memory the dynamic one starts at such.
  extern __shared__ __align__(1024) uint8_t raw[];
  using Memory = Shared<F>;
  Memory &shared = *reinterpret_cast<Memory *>(raw);
  if (shared_address(raw) % 1024 != 0) __trap();
  constexpr int kBm = F::kBm, kBn = F::kBn, kCluster = F::kCluster, kStages = F::kStages;
  constexpr int kGroups = F::kGroups, kCooperating = F::kCooperating, kRowBlocks = F::kRowBlocks, kStores = F::kStores;
  constexpr int kStoreColumns = F::kStoreColumns;
  const int group = static_cast<int>(threadIdx.x) / 128 - 1;
  const uint32_t rank = kCluster > 1 ? cluster_rank() : 0;

  // Recomputed per role: a value live across setmaxnreg is spilled.
  auto all_tiles = [&] {
    int m = p.m;
    asm volatile("" : "+r"(m));
    return Tiles{ceil_div(m, kBm * kCluster), ceil_div(p.n, kBn)};
  };
  const int steps = ceil_div(p.k, kStepBytes);
  const int first = static_cast<int>(blockIdx.x) / kCluster, stride = static_cast<int>(gridDim.x) / kCluster;

  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      for (auto &full : shared.full) mbarrier_init(&full[s], 1);
      mbarrier_init(&shared.empty[s], kCluster * kCooperating);
    }
    mbarrier_init_fence();
    for (const CUtensorMap *map : {&map_a, &map_w, &map_outlier_x, &map_outlier_w}) tma_prefetch_map(*map);
  }
  if (kCluster > 1) cluster_sync_after_init(); else __syncthreads();
  // Block 0 zeroes the single-pass prologue's counters before its PDL trigger: the next prologue increments them before its
  // wait. PDL guarantees that it sees the zeros only after its wait; but its atomics act in L2, where the fence has put them.
  const bool zeroes = blockIdx.x == 0 && p.counter_words > 0;
  if (!zeroes) pdl_trigger();
  // Parameters that the epilogue uses: the first use of each of their cache lines stalls the block, better here than there.
  asm volatile("" ::"l"(p.row_scales), "l"(p.column_scales), "l"(p.row_zeros), "l"(p.bias), "l"(p.y), "l"(p.ldy), "r"(p.n),
               "l"(p.outlier_count), "l"(p.outlier_w), "r"(p.weights_are_codes), "l"(p.counters), "r"(store_by_tma));
  // With more outlier columns than the compact operands hold, the MMA kernel behind this one computes y. Where that cannot be,
  // the count is not waited for before the first tile's products are done.
  const bool bounded = p.outlier_ld < p.k;
  auto count_outliers = [&] {
    uint32_t count = 0;
    if (p.outlier_count != nullptr) asm volatile("ld.global.u32 %0, [%1];" : "=r"(count) : "l"(p.outlier_count) : "memory");
    return static_cast<int>(count);
  };
  auto end_of = [&](int outliers, const Tiles &tiles) { return bounded && outliers > p.outlier_ld ? 0 : tiles.count(); };

  if (group < 0) {
    if (kGroups > 1) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0) {
      Ring<kStages> ring;
      const Tiles tiles = all_tiles();
      int outliers = 0, end = tiles.count();
      uint32_t turn = 0;  // which warpgroup's full mbarriers
      const int tile_rows = rows_of_tile<F>(p.m);
      const uint32_t stage_bytes = static_cast<uint32_t>((tile_rows + kBn) * kStepBytes);
      // No kernel writes weights: those of the first k-steps are loaded before the PDL wait.
      const int early = min(steps, F::kEarlySteps);
      for (int index = first; index < end; index += stride) {
        int cluster_m, tile_n;
        tiles.at(index, &cluster_m, &tile_n);
        const int row = (cluster_m * kCluster + static_cast<int>(rank)) * tile_rows;
        // Each block of the cluster loads its share of W's rows for all of them (multicast).
        constexpr int kShare = kBn / kCluster;
        const int column = tile_n * kBn + static_cast<int>(rank) * kShare;
        auto load_b = [&](const CUtensorMap &b, int k, int b_row) {
          uint64_t *full = &shared.full[turn][ring.stage];
          mbarrier_expect(full, stage_bytes);
          uint8_t *to = shared.b[ring.stage] + rank * kShare * kStepBytes;
          if (kCluster > 1) {
            tma_load_multicast(to, b, k, b_row, full, (1u << kCluster) - 1);
          } else {
            tma_load(to, b, k, b_row, full);
          }
        };
        auto load_a = [&](const CUtensorMap &a, int k, int a_row) {
          tma_load(shared.a[ring.stage], a, k, a_row, &shared.full[turn][ring.stage]);
          ring.advance();
        };
        auto load = [&](const CUtensorMap &a, const CUtensorMap &b, int k, int a_row, int b_row) {
          mbarrier_wait(&shared.empty[ring.stage], ring.phase() ^ 1);
          load_b(b, k, b_row);
          load_a(a, k, a_row);
        };
        int step = 0;
        if (index == first) {
#pragma unroll 1
          for (; step < early; ++step, ++ring.stage) load_b(map_w, step * kStepBytes, column);
          pdl_wait();
          if (bounded) end = end_of(outliers = count_outliers(), tiles);
          ring.stage = 0;
#pragma unroll 1
          for (int s = 0; s < early; ++s) load_a(map_a, s * kStepBytes, row);
          // No load may be in flight into a block that has ended.
          if (index >= end) {
#pragma unroll 1
            for (int s = 0; s < early; ++s) mbarrier_wait(&shared.full[0][s], 0);
            break;
          }
        }
#pragma unroll 1
        for (; step < steps; ++step) load(map_a, map_w, step * kStepBytes, row, column);
        if (index == first && !bounded) outliers = count_outliers();
        const int outlier_steps = ceil_div(outliers, kOutlierStep);
        // A panel of outlier columns is one k-step; rows beyond its end are the next panel's and reach no output.
#pragma unroll 1
        for (int panel = 0; panel < outlier_steps; ++panel) {
          load(map_outlier_x, map_outlier_w, 0, panel * p.m + row, panel * p.n + column);
        }
        if (F::kPingPong) turn ^= 1;
      }
    } else if (zeroes && threadIdx.x >= 32) {
      pdl_wait();
#pragma unroll 1
      for (int i = static_cast<int>(threadIdx.x) - 32; i < p.counter_words; i += 96) p.counters[i] = 0;
      __threadfence();
      named_barrier(1 + 2 * kGroups, 96);
      pdl_trigger();
    }
  } else {
    if (kGroups > 1) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int thread = static_cast<int>(threadIdx.x) % 128, warp = thread / 32, lane = thread % 32;
    // The tile in progress, and this warpgroup's number among those that share it.
    const int owner = F::kPingPong ? group : 0, member = F::kPingPong ? 0 : group;
    auto tile_barrier = [&] { named_barrier(1 + kGroups + owner, kCooperating * 128); };
    float4 *columns = shared.columns[owner];
    Ring<kStages> ring;
    uint32_t previous = 0;
    // Waits until the next stage is full and describes its operands: this warpgroup's first 64 rows of x, and W.
    uint64_t a = 0, b = 0;
    auto await = [&] {
      mbarrier_wait(&shared.full[owner][ring.stage], ring.phase());
      a = wgmma_descriptor(shared_address(shared.a[ring.stage]) + member * kRowBlocks * 64 * kStepBytes);
      b = wgmma_descriptor(shared_address(shared.b[ring.stage]));
    };
    constexpr uint64_t kHalf = 64 * kStepBytes / 16;  // from one block of rows to the next, as descriptors count
    auto advance = [&] {
      previous = ring.stage;
      ring.advance();
    };
    auto release = [&](uint32_t s) {
      if (thread < kCluster) mbarrier_arrive_cluster(&shared.empty[s], thread);
    };
    pdl_wait();
    int outliers = count_outliers();
    const Tiles tiles = all_tiles();
    const int end = bounded ? end_of(outliers, tiles) : tiles.count();
    // Ping-pong: the ring holds the other warpgroup's tiles between this one's.
    auto pass_tile = [&](int count) { ring.pass(steps + ceil_div(count, kOutlierStep)); };
    if (F::kPingPong && group > 0) {
      int count = outliers;
      asm volatile("" : "+r"(count)::"memory");  // the first warpgroup need not wait for it here
      pass_tile(count);
    }
    for (int index = first + owner * stride; index < end; index += kGroups / kCooperating * stride) {
      int cluster_m, tile_n;
      tiles.at(index, &cluster_m, &tile_n);
      const int tile_rows = rows_of_tile<F>(p.m), first_row = (cluster_m * kCluster + static_cast<int>(rank)) * tile_rows;
      const int tile_row = first_row + member * kRowBlocks * 64;
      const int column = tile_n * kBn;
      // This thread holds columns 8j + 2(lane%4) and the next of rows 64h + row0 and 64h + row0 + 8.
      const int row0 = tile_row + warp * 16 + lane / 4;
      const auto row_of = [&](int h, int low) { return row0 + 64 * h + 8 * low; };
      // Scales and bias are loaded here and used once the products are done. A thread loads one column's.
      float row_scale[kRowBlocks][2];
#pragma unroll
      for (int h = 0; h < kRowBlocks; ++h) {
#pragma unroll
        for (int low = 0; low < 2; ++low) row_scale[h][low] = row_of(h, low) < p.m ? p.row_scales[row_of(h, low)] : 0.0f;
      }
      const int own = member * 128 + thread;
      const bool loads_column = own < kBn && column + own < p.n;
      const float own_scale = loads_column ? p.column_scales[column + own] : 0.0f;
      const float own_bias = loads_column && p.bias != nullptr ? p.bias[column + own] : 0.0f;

      int32_t acc[kRowBlocks][kBn / 2];
      auto pin_all = [&] {
#pragma unroll
        for (int h = 0; h < kRowBlocks; ++h) pin(acc[h]);
      };
      // Cleared rather than overwritten by the first product: an undefined start makes the compiler serialise them all.
#pragma unroll
      for (int h = 0; h < kRowBlocks; ++h) {
#pragma unroll
        for (int i = 0; i < kBn / 2; ++i) acc[h][i] = 0;
      }
      pin_all();
      for (int step = 0; step < steps; ++step) {
        await();
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; ++k) {
#pragma unroll
          for (int h = 0; h < kRowBlocks; ++h) Wgmma<kBn>::s8(acc[h], a + h * kHalf + 2 * k, b + 2 * k);
        }
        wgmma_commit();
        // One group of products stays in flight; the stage of the one before is free.
        wgmma_wait<1>();
        if (step > 0) release(previous);
        advance();
      }
      wgmma_wait<0>();
      pin_all();
      release(previous);

      // Keeps the compiler from moving this, and the wait for it, before the products.
      asm volatile("" : "+r"(outliers)::"memory");
      const int outlier_steps = ceil_div(outliers, kOutlierStep);
#pragma unroll
      for (int h = 0; h < kRowBlocks; ++h) {
#pragma unroll
        for (int low = 0; low < 2; ++low) row_scale[h][low] *= 1.0f / 127.0f;
      }
      // All warpgroups must have read the last tile's scales. With more k-steps than stages they have: the last stage was filled
      // only after all had released a stage of this tile. A single warpgroup has passed a barrier since, when it stored.
      if (kCooperating > 1 && steps <= kStages) tile_barrier();
      if (own < kBn) {
        float *pair = reinterpret_cast<float *>(&columns[own / 2]) + own % 2;
        pair[0] = own_scale * (1.0f / 127.0f);
        pair[2] = own_bias;
      }

      // From here on acc holds the bits of f32.
      const auto f = [&](int h, int i) { return __int_as_float(acc[h][i]); };
      if (p.row_zeros == nullptr && p.column_zeros == nullptr) {
#pragma unroll
        for (int h = 0; h < kRowBlocks; ++h) {
#pragma unroll
          for (int i = 0; i < kBn / 2; ++i) acc[h][i] = __float_as_int(static_cast<float>(acc[h][i]));
        }
      } else {
#pragma unroll
        for (int h = 0; h < kRowBlocks; ++h) {
          int za[2], sa[2];
#pragma unroll
          for (int low = 0; low < 2; ++low) {
            const int row = row_of(h, low);
            za[low] = row < p.m && p.row_zeros ? p.row_zeros[row] : 0;
            sa[low] = row < p.m && p.column_zeros ? p.row_sums[row] : 0;
          }
#pragma unroll
          for (int j = 0; j < kBn / 8; ++j) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const int n = column + 8 * j + 2 * (lane % 4) + e;
              const int zw = p.column_zeros != nullptr && n < p.n ? p.column_zeros[n] : 0;
              const int sw = p.row_zeros != nullptr && n < p.n ? p.column_sums[n] : 0;
#pragma unroll
              for (int low = 0; low < 2; ++low) {
                int32_t &at = acc[h][4 * j + 2 * low + e];
                at = __float_as_int(corrected(at, za[low], sa[low], zw, sw, p.k));
              }
            }
          }
        }
      }
#pragma unroll
      for (int h = 0; h < kRowBlocks; ++h) {
#pragma unroll
        for (int i = 0; i < kBn / 2; ++i) acc[h][i] = __float_as_int(f(h, i) * row_scale[h][i / 2 % 2]);
      }
      tile_barrier();  // scale and bias become visible

      if (outlier_steps > 0) {
        if (!p.weights_are_codes) {
#pragma unroll
          for (int j = 0; j < kBn / 8; ++j) {
            const float2 s = *reinterpret_cast<const float2 *>(&columns[4 * j + lane % 4]);
#pragma unroll
            for (int h = 0; h < kRowBlocks; ++h) {
#pragma unroll
              for (int e = 0; e < 4; ++e) acc[h][4 * j + e] = __float_as_int(f(h, 4 * j + e) * (e % 2 == 0 ? s.x : s.y));
            }
          }
        }
        pin_all();
        auto multiply = [&](int k) {
#pragma unroll
          for (int h = 0; h < kRowBlocks; ++h) Wgmma<kBn>::accumulate(acc[h], a + h * kHalf + 2 * k, b + 2 * k, T{});
        };
        const int whole = outliers / kOutlierStep;
#pragma unroll 1
        for (int step = 0; step < whole; ++step) {
          await();
          wgmma_fence();
#pragma unroll
          for (int k = 0; k < 4; ++k) multiply(k);
          wgmma_commit();
          wgmma_wait<1>();
          if (step > 0) release(previous);
          advance();
        }
        // The last panel ends with zeros: products of 16 columns each, no more than there are columns.
        if (whole < outlier_steps) {
          await();
#pragma unroll 1
          for (int k = 0; k < ceil_div(outliers - whole * kOutlierStep, 16); ++k) {
            wgmma_fence();
            multiply(k);
            wgmma_commit();
          }
          if (whole > 0) {
            wgmma_wait<1>();
            release(previous);
          }
          advance();
        }
        wgmma_wait<0>();
        pin_all();
        release(previous);
      }
      const bool scale_last = outlier_steps == 0 || p.weights_are_codes;
#pragma unroll
      for (int j = 0; j < kBn / 8; ++j) {
        const float4 c = columns[4 * j + lane % 4];
        const float sx = scale_last ? c.x : 1.0f, sy = scale_last ? c.y : 1.0f;
#pragma unroll
        for (int h = 0; h < kRowBlocks; ++h) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            acc[h][4 * j + e] = __float_as_int(fmaf(f(h, 4 * j + e), e % 2 == 0 ? sx : sy, e % 2 == 0 ? c.z : c.w));
          }
        }
      }

      // All loads before the first store, so that they are in flight together.
      if (p.accumulate) {
#pragma unroll
        for (int h = 0; h < kRowBlocks; ++h) {
#pragma unroll
          for (int i = 0; i < kBn / 2; ++i) {
            const int n = column + 8 * (i / 4) + 2 * (lane % 4) + i % 2, row = row_of(h, i / 2 % 2);
            if (row < min(p.m, first_row + tile_rows) && n < p.n) acc[h][i] = __float_as_int(f(h, i) + load_y<T>(p.y, p.y_is_f32, row * p.ldy + n));
          }
        }
      }
      if (store_by_tma) {
        // Matrices of 8x8: rows 0-7 and 8-15 of column block j, then of block j + 1.
        const int local_row = warp * 16 + (lane / 8 % 2) * 8 + lane % 8;
        constexpr int kBlocks = kBn / kStoreColumns;
#pragma unroll
        for (int h = 0; h < kRowBlocks; ++h) {
#pragma unroll
          for (int c = 0; c < kBlocks; ++c) {
            uint8_t *block = shared.c[group][(h * kBlocks + c) % kStores];
            if (thread == 0) tma_store_wait_read<kStores - 1>();
            named_barrier(1 + group, 128);
#pragma unroll
            for (int j = c * kStoreColumns / 8; j < (c + 1) * kStoreColumns / 8; j += 2) {
              const int chunk = j % (kStoreColumns / 8) + lane / 16;
              // The swizzle of rows of 128 bytes, or of 64.
              const int moved = kStoreColumns == 64 ? chunk ^ local_row % 8 : chunk ^ local_row / 2 % 4;
              const uint32_t address = shared_address(block) + local_row * kStoreColumns * 2 + moved * 16;
              stmatrix_x4(address, pack2<T>(f(h, 4 * j), f(h, 4 * j + 1)), pack2<T>(f(h, 4 * j + 2), f(h, 4 * j + 3)),
                          pack2<T>(f(h, 4 * j + 4), f(h, 4 * j + 5)), pack2<T>(f(h, 4 * j + 6), f(h, 4 * j + 7)));
            }
            fence_async_proxy();
            named_barrier(1 + group, 128);
            if (thread == 0) {
              if (tile_row + 64 * h < p.m && column + c * kStoreColumns < p.n) {
                tma_store(map_y, column + c * kStoreColumns, tile_row + 64 * h, block);
              }
              tma_store_commit();
            }
          }
        }
      } else {
#pragma unroll
        for (int h = 0; h < kRowBlocks; ++h) {
#pragma unroll
          for (int i = 0; i < kBn / 2; ++i) {
            const int n = column + 8 * (i / 4) + 2 * (lane % 4) + i % 2, row = row_of(h, i / 2 % 2);
            if (row < min(p.m, first_row + tile_rows) && n < p.n) store_y<T>(p.y, p.y_is_f32, row * p.ldy + n, f(h, i));
          }
        }
        // With one warpgroup, no other barrier keeps the next tile's scales from overwriting these.
        if (kCooperating == 1) named_barrier(1 + group, 128);
      }
      if (F::kPingPong) pass_tile(outliers);
    }
    if (thread == 0) tma_store_wait();
  }
  // No block of a cluster may end while another can still arrive at its mbarriers.
  if (kCluster > 1) cluster_sync();
#endif
}

// A row-major matrix [rows, columns], ld elements between rows, read or written in boxes of box_rows x box_bytes, 128 or 64.
int8_cuda_status encode(CUtensorMap *map, CUtensorMapDataType type, int element_bytes, const void *base, int64_t rows,
                        int64_t columns, int64_t ld, int box_rows, int box_bytes = kStepBytes) {
  EncodeTiled encoder = nullptr;
  INT8_CUDA_PASS(find_encoder(&encoder));
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(ld * element_bytes)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_bytes / element_bytes), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUtensorMapSwizzle swizzle = box_bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
  const CUresult result = encoder(map, type, 2, const_cast<void *>(base), sizes, strides, box, steps,
                                  CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return driver_status(result);
}

template <typename T, typename F>
int8_cuda_status launch_tile(const GemmParams &p, CUtensorMapDataType type, cudaStream_t stream, bool overlap) {
  constexpr int kBm = F::kBm, kBn = F::kBn, kCluster = F::kCluster;
  CUtensorMap a, w, outlier_x{}, outlier_w{}, y{};
  const int rows = rows_of_tile<F>(p.m);
  const int64_t padded = round_up<int64_t>(p.k, 16);
  INT8_CUDA_PASS(encode(&a, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, p.a, p.m, padded, p.lda, rows));
  INT8_CUDA_PASS(encode(&w, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, p.w, p.n, padded, p.ldw, kBn / kCluster));
  if (p.outlier_count != nullptr) {
    const int64_t panels = p.outlier_ld / kOutlierStep;
    INT8_CUDA_PASS(encode(&outlier_x, type, 2, p.outlier_x, p.m * panels, kOutlierStep, kOutlierStep, rows));
    INT8_CUDA_PASS(encode(&outlier_w, type, 2, p.outlier_w, p.n * panels, kOutlierStep, kOutlierStep, kBn / kCluster));
  }
  const bool store_by_tma = !p.y_is_f32 && p.ldy % 8 == 0 && reinterpret_cast<uintptr_t>(p.y) % 16 == 0;
  if (store_by_tma) INT8_CUDA_PASS(encode(&y, type, 2, p.y, p.m, p.n, p.ldy, rows < 64 ? rows : 64, F::kStoreColumns * 2));

  Device device;
  INT8_CUDA_PASS(current_device(&device));
  auto *kernel = wgmma_gemm<T, F>;
  constexpr size_t kBytes = sizeof(Shared<F>);
  static_assert(kBytes <= 227 * 1024, "more shared memory than a block can have");
  INT8_CUDA_TRY(allow_shared(kernel, kBytes));
  const int64_t clusters = ceil_div<int64_t>(p.m, kBm * kCluster) * ceil_div<int64_t>(p.n, kBn);
  const int64_t at_once = device.multiprocessors / kCluster;
  const unsigned blocks = static_cast<unsigned>((clusters < at_once ? clusters : at_once) * kCluster);
  Launch launch(dim3(blocks), dim3(F::kThreads), kBytes, stream, overlap, kCluster);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, kernel, a, w, outlier_x, outlier_w, y, p, store_by_tma ? 1 : 0));
  return INT8_CUDA_OK;
}

// Stages: as many as fit into 227 KB beside the output tile. Small tiles, bound by memory, need 120 to 144 KB in flight; up to
// K of about 6000 their blocks fit beside those of the single-pass prologue and start early, with weights for all stages.
template <typename T>
int8_cuda_status launch_typed(const GemmParams &p, CUtensorMapDataType type, int algorithm, cudaStream_t stream,
                              bool overlap) {
  switch (algorithm) {
    case INT8_CUDA_WGMMA_128X256: return launch_tile<T, Form<128, 256, 2, 4>>(p, type, stream, overlap);
    case INT8_CUDA_WGMMA_128X128: return launch_tile<T, Form<128, 128, 1, 6, true>>(p, type, stream, overlap);
    case INT8_CUDA_WGMMA_64X128: return launch_tile<T, Form<64, 128, 1, 5, false, 5>>(p, type, stream, overlap);
    case INT8_CUDA_WGMMA_64X64: return launch_tile<T, Form<64, 64, 1, 8, false, 8>>(p, type, stream, overlap);
    case INT8_CUDA_WGMMA_64X32: return launch_tile<T, Form<64, 32, 1, 12, false, 12>>(p, type, stream, overlap);
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
