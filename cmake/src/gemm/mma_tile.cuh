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

  // [rows, 64 bytes, stages], K-major. The swizzle keeps the eight rows that a thread group reads at once in different banks:
  // neighbours of A; of B rows r, r + 1, r + 8, r + 9, ... (Columns).
  template <int kShift, int kAtomRows, int kRows>
  using Operand = decltype(cute::tile_to_shape(
      cute::composition(cute::Swizzle<2, 4, kShift>{}, cute::Layout<cute::Shape<Int<kAtomRows>, _64>, cute::Stride<_64, _1>>{}),
      cute::Shape<Int<kRows>, _64, Int<kStages>>{}));
  using A = Operand<3, 8, kBm>;
  using B = Operand<5, 32, kBn>;
  __device__ __forceinline__ static auto a_of(uint8_t *memory) {
    return cute::make_tensor(cute::make_smem_ptr(reinterpret_cast<int8_t *>(memory)), A{});
  }
  __device__ __forceinline__ static auto b_of(uint8_t *memory) {
    return cute::make_tensor(cute::make_smem_ptr(reinterpret_cast<int8_t *>(memory + kStages * kBm * kStepBytes)), B{});
  }
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

  uint8_t *memory;  // kBytes, at a multiple of 128
  decltype(MmaInt8{}.get_slice(0).partition_fragment_A(F::a_of(nullptr)(_, _, 0))) a;
  decltype(MmaInt8{}.get_slice(0).partition_fragment_B(F::b_of(nullptr)(_, _, 0))) b;

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
    const auto load_a = LoadA{}.get_slice(threadIdx.x);
    const auto load_b = LoadB{}.get_slice(threadIdx.x);
    const auto from_a = load_a.partition_S(F::a_of(memory));
    const auto from_b = load_b.partition_S(F::b_of(memory));
    auto to_a = load_a.retile_D(a);
    auto to_b = load_b.retile_D(b);
    cute::copy(LoadA{}, from_a(_, _, k, stage), to_a(_, _, k));
    cute::copy(LoadB{}, from_b(_, _, k, stage), to_b(_, _, k));
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
};

// Loads of a tile's operands into stages: four threads a row, 16 bytes each. Rows and bytes beyond the end become zeros.
template <typename F>
struct Loads {
  using Atom = cute::Copy_Atom<cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>, int8_t>;
  using Tiled = decltype(cute::make_tiled_copy(Atom{}, cute::Layout<cute::Shape<Int<F::kThreads / 4>, _4>, cute::Stride<_4, _1>>{},
                                               cute::Layout<cute::Shape<_1, _16>>{}));
  // This thread's first byte of a step.
  __device__ __forceinline__ static int first_byte() { return static_cast<int>(threadIdx.x) % 4 * 16; }

  // Rows of `ld` bytes from `from` on, [kRows, 64 bytes, step, panel].
  template <int kRows>
  __device__ __forceinline__ static auto operand(const void *from, int64_t ld, int64_t panel_bytes = 0) {
    return Tiled{}.get_slice(threadIdx.x).partition_S(
        cute::make_tensor(cute::make_gmem_ptr(static_cast<const int8_t *>(from)), cute::make_shape(Int<kRows>{}, _64{}, int32_t{1}, int32_t{1}),
                          cute::make_stride(ld, _1{}, _64{}, panel_bytes)));
  }
  template <typename From, typename To>
  __device__ __forceinline__ static void copy(const From &from, const To &to, int step, int panel, int stage, int rows, bool inside) {
    const auto stored = Tiled{}.get_slice(threadIdx.x).partition_D(to);
#pragma unroll
    for (int i = 0; i < cute::size<1>(stored); ++i) {
      const bool loads = inside && static_cast<int>(threadIdx.x) / 4 + i * (F::kThreads / 4) < rows;
      auto chunk = stored(_, i, 0, stage);
      cute::copy(Atom{}.with(loads), from(_, i, 0, step, panel), chunk);
    }
  }
};

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
  auto put = [&](auto operand, int first_row, int row, int j, T v) {
    if constexpr (sizeof(T) == 2) {
      *reinterpret_cast<T *>(&operand(row, j * 2, 0)) = v;
    } else {
      words[(first_row + row) * kWordsF32 + j] = v;
    }
  };
  const T zero = from_f32<T>(0.0f);
  for (int first = 0; first < count; first += kWide) {
    __syncthreads();
    for (int i = threadIdx.x; i < F::kBm * kWide; i += F::kThreads) {
      const int row = i / kWide, j = i % kWide;
      put(F::a_of(part.memory), 0, row, j, first + j < count ? x_at(row, first + j) : zero);
    }
    for (int i = threadIdx.x; i < F::kBn * kWide; i += F::kThreads) {
      const int row = kWByRow ? i % F::kBn : i / kWide, j = kWByRow ? i / F::kBn : i % kWide;
      put(F::b_of(part.memory), F::kBm, row, j, first + j < count ? w_at(row, first + j) : zero);
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
