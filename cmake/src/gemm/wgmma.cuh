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
#pragma once

#include <cute/tensor.hpp>
#include <cutlass/arch/barrier.h>
#include <cutlass/arch/reg_reconfig.h>

#include "common/cutlass.cuh"
#include "common/launch.cuh"
#include "common/tensor_map.cuh"
#include "common/tma.cuh"
#include "epilogue/store.cuh"
#include "epilogue/zero_point.cuh"
#include "gemm/gemm.cuh"

namespace int8_cuda {
namespace wgmma {

using cute::Int;
using cute::_, cute::_0, cute::_1, cute::_2, cute::_64;
using cutlass::arch::ClusterBarrier, cutlass::arch::ClusterTransactionBarrier;

// Bytes of K in one stage: the widest row of the swizzle.
constexpr int kStepBytes = 128;
constexpr int kOutlierStep = kStepBytes / 2;
// Clusters along M that run side by side before the next tile of N: with tiles of 128x256, 8 x 2 x 128 rows of x and about as
// many of W are in use at a time, some 16 MB at K = 4096, which stays in the L2 cache.
constexpr int kPanel = 8;
// L2 policy of TMA loads: the default one.
constexpr uint64_t kKeep = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL);

// A form of the kernel: the tile, how many blocks of a cluster share its weights (along M), and who multiplies it.
template <int kBm_, int kBn_, int kCluster_, int kStages_, bool kPingPong_, int kEarlySteps_>
struct Form {
  static constexpr int kBm = kBm_, kBn = kBn_, kCluster = kCluster_, kStages = kStages_;
  // k-steps whose weights are loaded before the PDL wait.
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

  // The rows of one operand in all stages, [rows, 128 bytes, stages], K-major under the 128-byte swizzle. An int8 and a 16-bit
  // k-step are the same bytes.
  template <typename Element, int kRows>
  using Operand = decltype(cute::tile_to_shape(cute::GMMA::Layout_K_SW128_Atom<Element>{},
                                               cute::Shape<Int<kRows>, Int<kStepBytes / sizeof(Element)>, Int<kStages>>{}));
  // The products of a tile: 64 rows a warpgroup at a time. The accumulators of both lie in registers alike.
  template <typename Element, typename Accumulator>
  using Mma = decltype(cute::make_tiled_mma(
      cute::GMMA::ss_op_selector<Element, Element, Accumulator, cute::Shape<_64, Int<kBn>, Int<kStepBytes / sizeof(Element)>>>(),
      cute::Layout<cute::Shape<Int<kCooperating>, _1, _1>>{}));
  // y on its way out: staging blocks of 64 rows, swizzled as TMA reads them, and stmatrix of a warpgroup's accumulators.
  template <typename Element>
  using Staging = decltype(cute::tile_to_shape(
      cute::conditional_t<kStoreColumns == 64, cute::GMMA::Layout_K_SW128_Atom<Element>, cute::GMMA::Layout_K_SW64_Atom<Element>>{},
      cute::Shape<_64, Int<kStoreColumns>, Int<kStores>>{}));
  template <typename Element>
  using Store = decltype(cute::make_tiled_copy_C(
      cute::Copy_Atom<cute::SM90_U32x4_STSM_N, Element>{},
      cute::make_tiled_mma(cute::GMMA::ss_op_selector<Element, Element, float, cute::Shape<_64, Int<kStoreColumns>, Int<16>>>())));
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
  ClusterTransactionBarrier full[F::kGroups / F::kCooperating][F::kStages];
  ClusterBarrier empty[F::kStages];
};

// ClusterBarrier::wait sleeps between two looks, and the first tile of a small product starts 1 us later.
__device__ __forceinline__ void wait(const ClusterBarrier &barrier, uint32_t phase) {
  while (!barrier.try_wait(phase)) {
  }
}
// As CuTe's copies take it.
__device__ __forceinline__ uint64_t *mbarrier(ClusterTransactionBarrier &barrier) { return reinterpret_cast<uint64_t *>(&barrier); }

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
  const uint32_t rank = kCluster > 1 ? cute::block_rank_in_cluster() : 0;

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
      for (auto &full : shared.full) full[s].init(1);
      shared.empty[s].init(kCluster * kCooperating);
    }
    cutlass::arch::fence_barrier_init();
    for (const CUtensorMap *map : {&map_a, &map_w, &map_outlier_x, &map_outlier_w}) cute::prefetch_tma_descriptor(map);
  }
  if (kCluster > 1) {
    // The fence has released what the wait acquires; a release here would be a fence of all memory.
    cute::cluster_arrive_relaxed();
    cute::cluster_wait();
  } else {
    __syncthreads();
  }
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
    if constexpr (kGroups > 1) cutlass::arch::warpgroup_reg_dealloc<40>();
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
          ClusterTransactionBarrier &full = shared.full[turn][ring.stage];
          full.arrive_and_expect_tx(stage_bytes);
          uint8_t *to = shared.b[ring.stage] + rank * kShare * kStepBytes;
          if constexpr (kCluster > 1) {
            cute::SM90_TMA_LOAD_MULTICAST_2D::copy(&b, mbarrier(full), (1u << kCluster) - 1, kKeep, to, k, b_row);
          } else {
            cute::SM90_TMA_LOAD_2D::copy(&b, mbarrier(full), kKeep, to, k, b_row);
          }
        };
        auto load_a = [&](const CUtensorMap &a, int k, int a_row) {
          cute::SM90_TMA_LOAD_2D::copy(&a, mbarrier(shared.full[turn][ring.stage]), kKeep, shared.a[ring.stage], k, a_row);
          ring.advance();
        };
        auto load = [&](const CUtensorMap &a, const CUtensorMap &b, int k, int a_row, int b_row) {
          wait(shared.empty[ring.stage], ring.phase() ^ 1);
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
            for (int s = 0; s < early; ++s) wait(shared.full[0][s], 0);
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
    if constexpr (kGroups > 1) cutlass::arch::warpgroup_reg_alloc<232>();
    const int thread = static_cast<int>(threadIdx.x) % 128;
    // The tile in progress, and this warpgroup's number among those that share it.
    const int owner = F::kPingPong ? group : 0, member = F::kPingPong ? 0 : group;
    auto tile_barrier = [&] { named_barrier(1 + kGroups + owner, kCooperating * 128); };
    float4 *columns = shared.columns[owner];
    Ring<kStages> ring;
    uint32_t previous = 0;

    // Operands of the products, (wgmma, its rows, its steps of K, stage), and the coordinates of this thread's accumulators,
    // ((column pair, row pair, 8 columns), block of rows, 0).
    using Half = typename Cutlass<T>::Type;
    using cute::make_smem_ptr, cute::make_tensor, cute::partition_fragment_C;
    typename F::template Mma<int8_t, int32_t> mma_int8;
    typename F::template Mma<Half, float> mma_half;
    const auto int8_part = mma_int8.get_slice(member * 128);
    const auto half_part = mma_half.get_slice(member * 128);
    auto operand = [&](auto *stages, auto layout) { return make_tensor(make_smem_ptr(stages), layout); };
    const auto int8_a = int8_part.partition_fragment_A(operand(reinterpret_cast<int8_t *>(shared.a), typename F::template Operand<int8_t, kBm>{}));
    const auto int8_b = int8_part.partition_fragment_B(operand(reinterpret_cast<int8_t *>(shared.b), typename F::template Operand<int8_t, kBn>{}));
    const auto half_a = half_part.partition_fragment_A(operand(reinterpret_cast<Half *>(shared.a), typename F::template Operand<Half, kBm>{}));
    const auto half_b = half_part.partition_fragment_B(operand(reinterpret_cast<Half *>(shared.b), typename F::template Operand<Half, kBn>{}));
    const auto place = mma_half.get_slice(member * 128 + thread).partition_C(cute::make_identity_tensor(cute::Shape<Int<kBm>, Int<kBn>>{}));
    const int first_local_row = cute::get<0>(place(0)), first_local_column = cute::get<1>(place(0));

    auto await = [&] { wait(shared.full[owner][ring.stage], ring.phase()); };
    auto advance = [&] {
      previous = ring.stage;
      ring.advance();
    };
    auto release = [&](uint32_t s) { shared.empty[s].arrive(thread, thread < kCluster); };
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
      const int column = tile_n * kBn;
      const int row0 = first_row + first_local_row, column0 = column + first_local_column;
      const auto row_of = [&](int h, int low) { return row0 + 64 * h + 8 * low; };
      const auto column_of = [&](int j, int e) { return column0 + 8 * j + e; };
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

      // f32, or the i32 of the integer product: the same registers. Two fragments would be alive at once, and spill.
      auto f = partition_fragment_C(mma_half, cute::Shape<Int<kBm>, Int<kBn>>{});
      auto sums = cute::recast<int32_t>(f);
      const auto at = [](int j, int low, int e) { return cute::make_coord(e, low, j); };
      // visit(h, j, low, e), by columns, so that what belongs to one is read once and not kept.
      auto each = [&](auto visit) {
#pragma unroll
        for (int j = 0; j < kBn / 8; ++j) {
#pragma unroll
          for (int h = 0; h < kRowBlocks; ++h) {
#pragma unroll
            for (int low = 0; low < 2; ++low) {
#pragma unroll
              for (int e = 0; e < 2; ++e) visit(h, j, low, e);
            }
          }
        }
      };
      // Scale and bias of the columns of pair j: scale, scale, bias, bias.
      const auto of_pair = [&](int j) { return columns[first_local_column / 2 + 4 * j]; };
      // Cleared rather than overwritten by the first product: an undefined start makes the compiler serialise them all.
      cute::clear(sums);
      cute::warpgroup_fence_operand(sums);
      for (int step = 0; step < steps; ++step) {
        await();
        cute::warpgroup_arrive();
#pragma unroll
        for (int k = 0; k < cute::size<2>(int8_a); ++k) {
          cute::gemm(mma_int8, int8_a(_, _, k, ring.stage), int8_b(_, _, k, ring.stage), sums);
        }
        cute::warpgroup_commit_batch();
        // One group of products stays in flight; the stage of the one before is free.
        cute::warpgroup_wait<1>();
        if (step > 0) release(previous);
        advance();
      }
      cute::warpgroup_wait<0>();
      cute::warpgroup_fence_operand(sums);
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

      if (p.row_zeros == nullptr && p.column_zeros == nullptr) {
        each([&](int h, int j, int low, int e) {
          f(at(j, low, e), h, 0) = static_cast<float>(sums(at(j, low, e), h, 0)) * row_scale[h][low];
        });
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
              const int n = column_of(j, e);
              const int zw = p.column_zeros != nullptr && n < p.n ? p.column_zeros[n] : 0;
              const int sw = p.row_zeros != nullptr && n < p.n ? p.column_sums[n] : 0;
#pragma unroll
              for (int low = 0; low < 2; ++low) {
                const auto i = at(j, low, e);
                f(i, h, 0) = corrected(sums(i, h, 0), za[low], sa[low], zw, sw, p.k) * row_scale[h][low];
              }
            }
          }
        }
      }
      tile_barrier();  // scale and bias become visible

      if (outlier_steps > 0) {
        if (!p.weights_are_codes) {
          each([&](int h, int j, int low, int e) {
            const float4 c = of_pair(j);
            f(at(j, low, e), h, 0) *= e == 0 ? c.x : c.y;
          });
        }
        cute::warpgroup_fence_operand(f);
        auto multiply = [&](int k) { cute::gemm(mma_half, half_a(_, _, k, ring.stage), half_b(_, _, k, ring.stage), f); };
        const int whole = outliers / kOutlierStep;
#pragma unroll 1
        for (int step = 0; step < whole; ++step) {
          await();
          cute::warpgroup_arrive();
#pragma unroll
          for (int k = 0; k < cute::size<2>(half_a); ++k) multiply(k);
          cute::warpgroup_commit_batch();
          cute::warpgroup_wait<1>();
          if (step > 0) release(previous);
          advance();
        }
        // The last panel ends with zeros: products of 16 columns each, no more than there are columns.
        if (whole < outlier_steps) {
          await();
#pragma unroll 1
          for (int k = 0; k < ceil_div(outliers - whole * kOutlierStep, 16); ++k) {
            cute::warpgroup_arrive();
            multiply(k);
            cute::warpgroup_commit_batch();
          }
          if (whole > 0) {
            cute::warpgroup_wait<1>();
            release(previous);
          }
          advance();
        }
        cute::warpgroup_wait<0>();
        cute::warpgroup_fence_operand(f);
        release(previous);
      }
      const bool scale_last = outlier_steps == 0 || p.weights_are_codes;
      each([&](int h, int j, int low, int e) {
        const float4 c = of_pair(j);
        const float scale = !scale_last ? 1.0f : e == 0 ? c.x : c.y;
        f(at(j, low, e), h, 0) = fmaf(f(at(j, low, e), h, 0), scale, e == 0 ? c.z : c.w);
      });

      // Whether y has this row and column in this tile.
      const auto inside = [&](int row, int n) { return row < min(p.m, first_row + tile_rows) && n < p.n; };
      // All loads before the first store, so that they are in flight together.
      if (p.accumulate) {
        each([&](int h, int j, int low, int e) {
          const int row = row_of(h, low), n = column_of(j, e);
          if (inside(row, n)) f(at(j, low, e), h, 0) += load_y<T>(p.y, p.y_is_f32, row * p.ldy + n);
        });
      }
      if (store_by_tma) {
        typename F::template Store<Half> store;
        const auto staging = make_tensor(make_smem_ptr(reinterpret_cast<Half *>(shared.c[group])), typename F::template Staging<Half>{});
        const auto to = store.get_slice(thread).partition_D(staging);
        constexpr int kBlocks = kBn / kStoreColumns;
#pragma unroll
        for (int h = 0; h < kRowBlocks; ++h) {
#pragma unroll
          for (int c = 0; c < kBlocks; ++c) {
            const int block = (h * kBlocks + c) % kStores;
            if (thread == 0) cute::tma_store_wait<kStores - 1>();
            named_barrier(1 + group, 128);
            auto values = make_tensor<Half>(cute::Shape<cute::Shape<_2, _2, Int<kStoreColumns / 8>>, _1, _1>{});
            auto pairs = cute::recast<uint32_t>(values);
#pragma unroll
            for (int i = 0; i < cute::size(pairs); ++i) {
              const int j = c * (kStoreColumns / 8) + i / 2, low = i % 2;
              pairs(i) = pack2<T>(f(at(j, low, 0), h, 0), f(at(j, low, 1), h, 0));
            }
            cute::copy(store, store.get_slice(thread).retile_S(values), to(_, _, _, block));
            fence_async_proxy();
            named_barrier(1 + group, 128);
            if (thread == 0) {
              const int row = first_row + (member * kRowBlocks + h) * 64, n = column + c * kStoreColumns;
              if (row < p.m && n < p.n) cute::SM90_TMA_STORE_2D::copy(&map_y, shared.c[group][block], n, row);
              cute::tma_store_arrive();
            }
          }
        }
      } else {
        each([&](int h, int j, int low, int e) {
          const int row = row_of(h, low), n = column_of(j, e);
          if (inside(row, n)) store_y<T>(p.y, p.y_is_f32, row * p.ldy + n, f(at(j, low, e), h, 0));
        });
        // With one warpgroup, no other barrier keeps the next tile's scales from overwriting these.
        if (kCooperating == 1) named_barrier(1 + group, 128);
      }
      if (F::kPingPong) pass_tile(outliers);
    }
    // Until shared memory has been read; that y is written, the end of the kernel says.
    if (thread == 0) cute::tma_store_wait<0>();
  }
  // No block of a cluster may end while another can still arrive at its mbarriers.
  if constexpr (kCluster > 1) cute::cluster_sync();
#endif
}

// A row-major matrix [rows, columns], ld elements between rows, read or written in boxes of box_rows x box_bytes, 128 or 64.
inline int8_cuda_status encode(CUtensorMap *map, CUtensorMapDataType type, int element_bytes, const void *base, int64_t rows,
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

template <typename F>
int8_cuda_status launch(const GemmParams &p, int element, cudaStream_t stream, bool overlap) {
  switch (element) {
    case INT8_CUDA_F16: return launch_tile<__half, F>(p, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, stream, overlap);
    case INT8_CUDA_BF16: return launch_tile<__nv_bfloat16, F>(p, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, stream, overlap);
    default: return INT8_CUDA_UNSUPPORTED;
  }
}

}  // namespace wgmma
}  // namespace int8_cuda
