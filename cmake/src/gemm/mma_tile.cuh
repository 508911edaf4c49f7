// Tiles multiplied by mma.sync (sm_80 and later): the operands' layouts in shared memory, who multiplies what, and the product of
// operands gathered element by element.
#pragma once

#include <cute/tensor.hpp>

#include "common/cutlass.cuh"

namespace int8_cuda {
namespace tile {

using cute::Int;
using cute::_, cute::_1, cute::_2, cute::_4, cute::_8, cute::_16, cute::_32, cute::_64;

// Bytes of K in one stage: two steps of mma.sync.
constexpr int kStepBytes = 64;
constexpr int kOutlierStep = kStepBytes / 2;
// f32 elements of K at a time, in rows of 17 words against bank conflicts.
constexpr int kStepF32 = 16, kWordsF32 = kStepF32 + 1;

template <typename Half>
struct MmaAtom;
template <>
struct MmaAtom<cutlass::half_t> {
  using Type = cute::SM80_16x8x16_F32F16F16F32_TN;
};
template <>
struct MmaAtom<cutlass::bfloat16_t> {
  using Type = cute::SM80_16x8x16_F32BF16BF16F32_TN;
};

// A tile, its warps along M and N, stages, and the blocks that a multiprocessor has at once.
template <int kBm_, int kBn_, int kWarpsM_, int kWarpsN_, int kStages_, int kBlocks_>
struct Form {
  static constexpr int kBm = kBm_, kBn = kBn_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kStages = kStages_, kBlocks = kBlocks_;
  static constexpr int kThreads = kWarpsM * kWarpsN * 32;
  static constexpr int kStageBytes = (kBm + kBn) * kStepBytes;
  static constexpr int kBytes = kStages * kStageBytes;
  static_assert(kBm % (16 * kWarpsM) == 0 && kBn % (32 * kWarpsN) == 0, "warps of 16 rows and 32 columns");

  // A warp multiplies 32 columns as four products of 8, ordered so that each thread has 8 neighbours of a row of y:
  // column 8t + 2j + e is element e of thread t (mod 4) in product j.
  using Columns = cute::Layout<cute::Shape<_2, _4, Int<kWarpsN>, _4>, cute::Stride<_1, _8, _32, _2>>;
  template <typename Atom, int kInner>
  using Mma = decltype(cute::make_tiled_mma(cute::MMA_Atom<Atom>{}, cute::Layout<cute::Shape<Int<kWarpsM>, Int<kWarpsN>, _1>>{},
                                            cute::Tile<Int<16 * kWarpsM>, Columns, Int<kInner>>{}));
  // Both step over 32 bytes of K, with operands and accumulators in registers alike.
  using MmaInt8 = Mma<cute::SM80_16x8x32_S32S8S8S32_TN, 32>;
  template <typename Half>
  using Mma16 = Mma<typename MmaAtom<Half>::Type, 16>;

  // A stage: rows of 64 bytes of A, then of B. The swizzle, of byte offsets, keeps the eight rows that a thread group reads at
  // once in different banks: neighbours of A; of B rows r, r + 1, r + 8, r + 9, ... (Columns).
  using SwizzleA = cute::Swizzle<2, 4, 3>;
  using SwizzleB = cute::Swizzle<2, 4, 5>;
  __device__ __forceinline__ static uint8_t *a_of(uint8_t *memory, int stage) { return memory + stage * kStageBytes; }
  __device__ __forceinline__ static uint8_t *b_of(uint8_t *memory, int stage) { return a_of(memory, stage) + kBm * kStepBytes; }
};

// The 16-bit operands of T. f32 and the raw product have none; f16 stands for them.
template <typename T>
using Half = typename Cutlass<cute::conditional_t<sizeof(T) == 2, T, __half>>::Type;

// One thread's part of a tile: fragments of one stage and the products with them. int8 and 16-bit steps are the same bytes, so
// one pair of fragments serves both.
template <typename F, typename T>
struct Part {
  using MmaInt8 = typename F::MmaInt8;
  using Mma16 = typename F::template Mma16<Half<T>>;
  using Load = cute::Copy_Atom<cute::SM75_U32x4_LDSM_N, int8_t>;
  using LoadA = decltype(cute::make_tiled_copy_A(Load{}, MmaInt8{}));
  using LoadB = decltype(cute::make_tiled_copy_B(Load{}, MmaInt8{}));

  // Rows of 64 bytes before the swizzle: a swizzled tensor in every partition makes the compiler twice as slow.
  template <int kRows>
  __device__ __forceinline__ static auto rows_of(uint8_t *stage) {
    return cute::make_tensor(cute::make_smem_ptr(reinterpret_cast<int8_t *>(stage)), cute::Layout<cute::Shape<Int<kRows>, _64>, cute::Stride<_64, _1>>{});
  }
  uint8_t *memory;  // kBytes, at a multiple of 128
  decltype(MmaInt8{}.get_slice(0).partition_fragment_A(rows_of<F::kBm>(nullptr))) a;
  decltype(MmaInt8{}.get_slice(0).partition_fragment_B(rows_of<F::kBn>(nullptr))) b;

  __device__ __forceinline__ explicit Part(uint8_t *memory_) : memory(memory_) {}

  // The accumulators, ((column pair, row pair), 16 rows, 8 columns), as f32; the integer product's are the same registers.
  __device__ __forceinline__ static auto accumulators() {
    return cute::partition_fragment_C(Mma16{}, cute::Shape<Int<F::kBm>, Int<F::kBn>>{});
  }
  // Row and column in the tile of each accumulator.
  __device__ __forceinline__ static auto places() {
    return Mma16{}.get_slice(threadIdx.x).partition_C(cute::make_identity_tensor(cute::Shape<Int<F::kBm>, Int<F::kBn>>{}));
  }

  // Step k (0, 1) of a stage into registers.
  __device__ __forceinline__ void fetch(int stage, int k) {
    fetch<LoadA, typename F::SwizzleA, F::kBm>(F::a_of(memory, stage), k, a);
    fetch<LoadB, typename F::SwizzleB, F::kBn>(F::b_of(memory, stage), k, b);
  }
  template <typename Sums>
  __device__ __forceinline__ void multiply_int8(int k, Sums &sums) const {
    cute::gemm(MmaInt8{}, a(_, _, k), b(_, _, k), sums);
  }
  template <typename Sums>
  __device__ __forceinline__ void multiply_16bit(int k, Sums &sums) const {
    const auto half_a = cute::recast<Half<T>>(a);
    const auto half_b = cute::recast<Half<T>>(b);
    cute::gemm(Mma16{}, half_a(_, _, k), half_b(_, _, k), sums);
  }

 private:
  template <typename Tiled, typename Swizzle, int kRows, typename Fragment>
  __device__ __forceinline__ static void fetch(uint8_t *stage, int k, Fragment &fragment) {
    const auto load = Tiled{}.get_slice(threadIdx.x);
    const auto from = load.partition_S(rows_of<kRows>(stage))(_, _, k);
    auto to = load.retile_D(fragment)(_, _, k);
    const auto to_register = [&](int byte) -> uint32_t & { return *reinterpret_cast<uint32_t *>(&to(byte)); };
#pragma unroll
    for (int i = 0; i < cute::size(to); i += 16) {
      const int offset = static_cast<int>(&from(i) - reinterpret_cast<int8_t *>(stage));
      const auto &row = *reinterpret_cast<const cute::uint128_t *>(stage + Swizzle{}(offset));
      cute::SM75_U32x4_LDSM_N::copy(row, to_register(i), to_register(i + 4), to_register(i + 8), to_register(i + 12));
    }
  }
};

// One operand's rows of a tile on their way into the stages by cp.async: four threads a row, 16 bytes each.
template <typename F, int kRows, typename Swizzle>
struct Loads {
  static constexpr int kEvery = F::kThreads / 4;  // rows between two of a thread
  static_assert(kRows % kEvery == 0, "every thread loads as many rows");
  const uint8_t *from;  // this thread's first 16 bytes
  int64_t ld;           // bytes
  int rows;             // of this thread's first one, those inside

  __device__ __forceinline__ Loads(const void *first_row, int64_t ld_, int64_t inside)
      : from(static_cast<const uint8_t *>(first_row) + row() * ld_ + byte()), ld(ld_), rows(static_cast<int>(min(inside, int64_t{kRows})) - row()) {}
  __device__ __forceinline__ static int row() { return static_cast<int>(threadIdx.x) / 4; }
  // This thread's first byte of a step.
  __device__ __forceinline__ static int byte() { return static_cast<int>(threadIdx.x) % 4 * 16; }

  // From `offset` bytes behind the first row on. Rows beyond the end, and all if `inside` is false, become zeros.
  __device__ __forceinline__ void operator()(uint8_t *stage, int64_t offset, bool inside) const {
#pragma unroll
    for (int i = 0; i < kRows / kEvery; ++i) {
      const auto &value = *reinterpret_cast<const cute::uint128_t *>(from + offset + i * kEvery * ld);
      auto &to = *reinterpret_cast<cute::uint128_t *>(stage + Swizzle{}((row() + i * kEvery) * kStepBytes + byte()));
      cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>::copy(value, to, inside && i * kEvery < rows);
    }
  }
};
template <typename F>
using LoadsA = Loads<F, F::kBm, typename F::SwizzleA>;
template <typename F>
using LoadsB = Loads<F, F::kBn, typename F::SwizzleB>;

// The ring of stages. load(step, stage) issues the loads of a step, of those beyond the end none.
template <typename F, typename T, typename Load>
struct Ring {
  Part<F, T> &part;
  Load load;
  int stage = 0, next = 0, next_stage = 0;

  __device__ __forceinline__ Ring(Part<F, T> &part_, Load load_) : part(part_), load(load_) {
#pragma unroll 1
    for (int s = 0; s < F::kStages - 1; ++s) load_next();
    arrive();
    part.fetch(0, 0);
  }
  // `count` steps in two halves each, multiply(0) and multiply(1); the fragments of the next half are loaded meanwhile.
  template <typename Multiply>
  __device__ __forceinline__ void run(int count, Multiply multiply) {
#pragma unroll 1
    for (int step = 0; step < count; ++step) {
      part.fetch(stage, 1);
      load_next();
      multiply(0);
      if (++stage == F::kStages) stage = 0;
      arrive();
      part.fetch(stage, 0);
      multiply(1);
    }
  }

 private:
  __device__ __forceinline__ void load_next() {
    load(next++, next_stage);
    cute::cp_async_fence();
    if (++next_stage == F::kStages) next_stage = 0;
  }
  // The next stage is filled, and all have read the one that load_next fills.
  __device__ __forceinline__ void arrive() {
    cute::cp_async_wait<F::kStages - 2>();
    __syncthreads();
  }
};
template <typename F, typename T, typename Load>
__device__ __forceinline__ Ring<F, T, Load> ring_of(Part<F, T> &part, Load load) { return {part, load}; }

// f += x [kBm, count] * w [kBn, count]^T with x_at(row, j) and w_at(row, j) returning T. 16-bit types on tensor cores, f32
// by fused multiply-adds (no tensor-core form keeps 24 bits).
// kWByRow: neighbouring threads call w_at for neighbouring rows instead of neighbouring j.
template <bool kWByRow, typename F, typename T, typename Sums, typename X, typename W>
__device__ __forceinline__ void accumulate_gathered(Part<F, T> &part, Sums &f, int count, X x_at, W w_at) {
  constexpr int kWide = sizeof(T) == 2 ? kOutlierStep : kStepF32;
  float *words = reinterpret_cast<float *>(part.memory);
  static_assert(F::kBytes >= (F::kBm + F::kBn) * kWordsF32 * 4, "a step of f32 operands");
  const auto put = [&](auto swizzle, uint8_t *operand, int first_row, int row, int j, T v) {
    if constexpr (sizeof(T) == 2) {
      *reinterpret_cast<T *>(operand + swizzle(row * kStepBytes + j * 2)) = v;
    } else {
      words[(first_row + row) * kWordsF32 + j] = v;
    }
  };
  const T zero = from_f32<T>(0.0f);
  for (int first = 0; first < count; first += kWide) {
    __syncthreads();
    for (int i = threadIdx.x; i < F::kBm * kWide; i += F::kThreads) {
      const int row = i / kWide, j = i % kWide;
      put(typename F::SwizzleA{}, F::a_of(part.memory, 0), 0, row, j, first + j < count ? x_at(row, first + j) : zero);
    }
    for (int i = threadIdx.x; i < F::kBn * kWide; i += F::kThreads) {
      const int row = kWByRow ? i % F::kBn : i / kWide, j = kWByRow ? i / F::kBn : i % kWide;
      put(typename F::SwizzleB{}, F::b_of(part.memory, 0), F::kBm, row, j, first + j < count ? w_at(row, first + j) : zero);
    }
    __syncthreads();
    if constexpr (sizeof(T) == 2) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        part.fetch(0, k);
        part.multiply_16bit(k, f);
      }
    } else {
      const auto place = part.places();
      for (int j = 0; j < kStepF32; ++j) {
#pragma unroll
        for (int i = 0; i < cute::size(f); ++i) {
          f(i) = fmaf(words[cute::get<0>(place(i)) * kWordsF32 + j], words[(F::kBm + cute::get<1>(place(i))) * kWordsF32 + j], f(i));
        }
      }
    }
  }
}

}  // namespace tile
}  // namespace int8_cuda
