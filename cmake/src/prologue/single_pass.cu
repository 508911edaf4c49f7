// The prologue of a decomposed layer as one kernel (sm_90): outlier columns, codes, scales and the compact operands of the
// outlier product, x read from memory once.
//
//   1  Blocks take slabs of rows from a work counter. TMA loads bring a slab into shared memory; each thread keeps the largest
//      magnitude of its columns, and the block adds the outlier columns it found to the mask in global memory.
//   2  Grid barrier. Then each block quantises the rows it took: those still in shared memory are not loaded again, the
//      others come from the L2 cache.
//   3  The blocks share the rows of W and gather the outlier columns, where that is the prologue's work.
//
// The grid barrier cannot deadlock, however few blocks run at a time: a block waits only once the work counter has given out
// all slabs, and a block that holds one is running and waits for nothing but the kernel before, all of whose blocks have
// started.
#include "prologue/single_pass.cuh"

#include "common/launch.cuh"
#include "common/tma.cuh"
#include "prologue/quantize.cuh"

namespace int8_cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;
// Chunks of a row that a thread reads before it uses the first.
constexpr int kBatch = 4;
// Chunks of columns whose magnitudes a thread keeps.
constexpr int kSlots = kSinglePassInner / kChunk / kThreads;
// Slabs that fit into shared memory, at most; and rows of a slab.
constexpr int kMaxBuffers = 16, kMaxSlabRows = 4;
// Buffers reused as a ring once all others hold a slab to keep: one being read, two loading.
constexpr int kRing = 3;
constexpr int kBytes = 227 * 1024;
// Words of the counters: work counter; slabs that have arrived at the grid barrier, and blocks that have read the mask behind
// it; mask. Each group on cache lines of its own.
constexpr int kWorkCounter = 0, kArrived = 32, kPassed = 33, kMask = 64;

struct Shape {
  int slab_rows, slabs, buffers, ahead;  // slab_rows: a power of two; ahead: slabs loading beside the one being read
  int first_slabs;                       // that a block takes from the work counter at once: ahead + 1, or ahead
};

// Shared memory behind the row buffers.
struct Tail {
  uint64_t full[kMaxBuffers];
  uint32_t scratch[2][kWarps];
  uint32_t mask[kSinglePassInner / 32];
  uint16_t slab[kSinglePassSlabs + kRing];
  // Followed by the list of outlier columns, u16 [k].
};

// Over the warps of one group, which share a row. `turn` alternates between two places, so that one barrier a call suffices.
template <typename V, typename Op>
__device__ __forceinline__ V group_reduce(V v, Op op, uint32_t (&scratch)[2][kWarps], int *turn, int group, int warps) {
  static_assert(sizeof(V) == 4, "words");
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v = op(v, __shfl_xor_sync(0xffffffffu, v, offset));
  if (warps == 1) return v;
  V *words = reinterpret_cast<V *>(scratch[*turn & 1]);
  ++*turn;
  if (threadIdx.x % 32 == 0) words[threadIdx.x / 32] = v;
  named_barrier(1 + group, warps * 32);
  v = words[group * warps];
  for (int i = 1; i < warps; ++i) v = op(v, words[group * warps + i]);
  return v;
}

// kUsual: absmax codes, column granularity, a fixed threshold, the paper's row maximum, no sums of codes. The other settings
// cost instructions, which bound this kernel.
template <typename T, bool kUsual>
__global__ void __launch_bounds__(kThreads, 1) single_pass(const __grid_constant__ PrologueParams p, const Shape shape) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) uint8_t memory[];
  const int inner = static_cast<int>(p.k), chunks = inner / kChunk, words = ceil_div(inner, 32), rows = static_cast<int>(p.m);
  const int row_bytes = inner * 2, slab_bytes = shape.slab_rows * row_bytes;
  Tail &tail = *reinterpret_cast<Tail *>(memory + round_up(shape.buffers * slab_bytes, 128));
  uint16_t *list = reinterpret_cast<uint16_t *>(&tail + 1);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool relative = !kUsual && p.rule != INT8_CUDA_RULE_ABSOLUTE, by_value = !kUsual && p.outlier_granularity == INT8_CUDA_VALUE;
  const bool sums = !kUsual && p.code_sums != nullptr;
  const T *x = static_cast<const T *>(p.x);

  if (threadIdx.x == 0) {
    for (int i = 0; i < shape.buffers; ++i) mbarrier_init(&tail.full[i], 1);
    mbarrier_init_fence();
  }
  // Without resets_counters the first slabs are taken before the PDL wait: the wgmma kernel before has zeroed the counters
  // before it triggered this kernel (gemm/wgmma.cuh), and nothing that is still running touches them. With it, the prologue
  // before zeroes them at its end, which only the wait makes certain.
  uint32_t first_slab = 0;
  if (threadIdx.x == 0 && !p.resets_counters) {
    first_slab = atomicAdd(&p.counters[kWorkCounter], static_cast<uint32_t>(shape.first_slabs));
  }
  pdl_trigger();
  // The first use of each cache line of kernel parameters stalls the block: better before the PDL wait.
  asm volatile("" ::"l"(p.x), "l"(p.codes), "l"(p.scales), "l"(p.zero_points), "l"(p.counters), "l"(p.outliers.count), "l"(p.outliers.w),
               "l"(p.outliers.ld), "l"(p.weight.codes), "l"(p.weight.ldw), "l"(p.m), "l"(p.k), "l"(p.ldx), "f"(p.threshold),
               "r"(p.weights_are_codes), "r"(p.resets_counters), "r"(shape.ahead));
  pdl_wait();
  if (threadIdx.x == 0 && p.resets_counters) {
    first_slab = atomicAdd(&p.counters[kWorkCounter], static_cast<uint32_t>(shape.first_slabs));
  }

  // Local slab i lies in buffer i, or, once all are in use, in the next one of the ring.
  const int ring = shape.buffers - kRing;
  auto buffer_of = [&](int i) { return i < shape.buffers ? i : ring + (i - shape.buffers) % kRing; };
  auto rows_in = [&](int slab) { return min(shape.slab_rows, rows - slab * shape.slab_rows); };
  auto load = [&](int slab, int buffer) {
    const int count = rows_in(slab);
    mbarrier_expect(&tail.full[buffer], static_cast<uint32_t>(count * row_bytes));
#pragma unroll 1
    for (int r = 0; r < count; ++r) {
      tma_load_bytes(memory + buffer * slab_bytes + r * row_bytes, x + (static_cast<int64_t>(slab) * shape.slab_rows + r) * p.ldx,
                   static_cast<uint32_t>(row_bytes), &tail.full[buffer]);
    }
  };
  auto start = [&](int i, uint32_t slab) {
    tail.slab[i] = static_cast<uint16_t>(min(slab, static_cast<uint32_t>(shape.slabs)));
    if (slab < static_cast<uint32_t>(shape.slabs)) load(static_cast<int>(slab), buffer_of(i));
  };
  uint32_t next = 0;  // thread 0: the next slab
  if (threadIdx.x == 0) {
#pragma unroll 1
    for (int i = 0; i < shape.ahead; ++i) start(i, first_slab + i);
    next = shape.first_slabs > shape.ahead ? first_slab + shape.ahead : atomicAdd(&p.counters[kWorkCounter], 1u);
  }

  // --- 1: outlier columns
  // The largest magnitudes of this thread's columns, and, in the end or for the relative rules, the outliers among them.
  uint32_t most[kSlots][kChunk / 2] = {}, hits[kSlots] = {};
  // Short rows: each half of the block takes every second one.
  const int sharing = 2 * chunks <= kThreads ? 2 : 1, first_row = static_cast<int>(threadIdx.x) / (kThreads / sharing);
  const int watched = static_cast<int>(threadIdx.x) % (kThreads / sharing);
  int taken = 0;
  for (;; ++taken) {
    __syncthreads();  // the slab's number is written, and no thread reads the slab before the last any more
    const int slab = tail.slab[taken];
    if (slab >= shape.slabs) break;
    if (threadIdx.x == 0) {
      start(taken + shape.ahead, next);
      if (next < static_cast<uint32_t>(shape.slabs)) next = atomicAdd(&p.counters[kWorkCounter], 1u);
    }
    const int buffer = buffer_of(taken), count = rows_in(slab);
    const uint8_t *from = memory + buffer * slab_bytes;
    mbarrier_wait(&tail.full[buffer], taken < shape.buffers ? 0u : static_cast<uint32_t>((taken - shape.buffers) / kRing + 1) & 1u);
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const int chunk = watched + s * kThreads;
      if (chunk >= chunks) break;
      if (!relative) {
#pragma unroll
        for (int i = 0; i < kMaxSlabRows; ++i) {
          const int r = first_row + i * sharing;
          if (r >= count) break;
          const uint4 v = *reinterpret_cast<const uint4 *>(from + r * row_bytes + chunk * 16);
          most[s][0] = larger_magnitudes<T, false>(most[s][0], v.x);
          most[s][1] = larger_magnitudes<T, false>(most[s][1], v.y);
          most[s][2] = larger_magnitudes<T, false>(most[s][2], v.z);
          most[s][3] = larger_magnitudes<T, false>(most[s][3], v.w);
        }
      } else {
        for (int r = first_row; r < count; r += sharing) {
          const T(&v)[kChunk] = *reinterpret_cast<const T(*)[kChunk]>(from + r * row_bytes + chunk * 16);
          const float threshold = p.thresholds[static_cast<int64_t>(slab) * shape.slab_rows + r];
          hits[s] |= hits_of<T, true>(v, threshold, floor_of<T, true>(threshold));
        }
      }
    }
  }
  if (!relative) {
    const uint32_t floor = Packed<T>::at_least(p.threshold);
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (s * kThreads >= chunks) break;
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const uint32_t bits = i % 2 == 0 ? most[s][i / 2] & 0xffffu : most[s][i / 2] >> 16;
        hits[s] |= (bits >= floor ? 1u : 0u) << i;
      }
    }
  }
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    const int chunk = watched + s * kThreads;
    if (chunk - lane >= chunks) break;
    uint32_t word = (chunk < chunks ? hits[s] : 0u) << (lane % 4 * kChunk);
    word |= __shfl_xor_sync(0xffffffffu, word, 1);
    word |= __shfl_xor_sync(0xffffffffu, word, 2);
    uint32_t *at = &p.counters[kMask + chunk / 4];
    if (lane % 4 == 0 && word != 0 && (word & ~__ldcg(at)) != 0) atomicOr(at, word);
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    if (taken > 0) atomicAdd(&p.counters[kArrived], static_cast<uint32_t>(taken));
    uint32_t done;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(done) : "l"(&p.counters[kArrived]) : "memory");
    } while (done < static_cast<uint32_t>(shape.slabs));
  }
  __syncthreads();

  // --- the list of outlier columns: one word of the mask a thread
  uint32_t bits = 0;
  if (static_cast<int>(threadIdx.x) < words) bits = __ldcg(&p.counters[kMask + threadIdx.x]);
  const uint32_t own = __popc(bits);
  uint32_t inclusive = own;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint32_t other = __shfl_up_sync(0xffffffffu, inclusive, offset);
    if (lane >= offset) inclusive += other;
  }
  if (lane == 31) tail.scratch[0][warp] = inclusive;
  if (static_cast<int>(threadIdx.x) < words) tail.mask[threadIdx.x] = bits;
  __syncthreads();
  uint32_t base = 0, outliers = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp) base = outliers;
    outliers += tail.scratch[0][w];
  }
  for (uint32_t rank = base + inclusive - own; bits != 0; ++rank, bits &= bits - 1) {
    list[rank] = static_cast<uint16_t>(threadIdx.x * 32 + __ffs(bits) - 1);
  }
  __syncthreads();
  // The block that reads the mask last zeroes the counters: no block can touch them any more.
  if (p.resets_counters && threadIdx.x == 0) {
    __threadfence();
    if (atomicAdd(&p.counters[kPassed], 1u) == gridDim.x - 1) {
#pragma unroll 1
      for (int i = 0; i < kMask + words; ++i) p.counters[i] = 0;
    }
  }
  if (blockIdx.x == 0) {
    if (threadIdx.x == 0) *p.outliers.count = outliers;
#pragma unroll 1
    for (uint32_t j = threadIdx.x; j < outliers; j += kThreads) p.outliers.columns[j] = list[j];
  }
  const uint32_t padded = round_up(outliers, 64u), held = static_cast<uint32_t>(p.outliers.ld);
  const uint8_t *mask_bytes = reinterpret_cast<const uint8_t *>(tail.mask);

  // --- 2: codes
  const bool both_ends = !kUsual && p.encoding == INT8_CUDA_ZEROPOINT;
  const bool own_range = !kUsual && (by_value || p.row_maximum == INT8_CUDA_MAXIMUM_BITSANDBYTES);
  int turn = 0;
  auto quantize = [&](const uint8_t *from, int64_t m, int group, int warps) {
    const float threshold = relative ? p.thresholds[m] : p.threshold;
    const uint32_t row_floor = floor_of<T, true>(threshold);
    const int first = (warp % warps) * 32 + lane, stride = warps * 32;
    auto for_each = [&](bool own, auto body) {
      for (int at = first; at < chunks; at += kBatch * stride) {
        uint4 raw[kBatch];
        uint32_t hits[kBatch];
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          const int chunk = at + b * stride;
          raw[b] = make_uint4(0, 0, 0, 0);
          hits[b] = 0;
          if (chunk < chunks) {
            raw[b] = *reinterpret_cast<const uint4 *>(from + chunk * 16);
            if (!own) hits[b] = mask_bytes[chunk];
          }
        }
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          const T(&v)[kChunk] = reinterpret_cast<const T(&)[kChunk]>(raw[b]);
          if (own) hits[b] = hits_of<T, true>(v, threshold, row_floor);
          body(at + b * stride, v, hits[b]);
        }
      }
    };
    PackedRange<T> packed;
    for_each(own_range, [&](int, const T(&v)[kChunk], uint32_t skip) {
      packed.add_chunk(v, skip, both_ends);
    });
    Range range;
    const uint32_t most = group_reduce(larger_of_pair(packed.most), [](uint32_t a, uint32_t b) { return max(a, b); }, tail.scratch,
                                       &turn, group, warps);
    range.infinite = most >= Packed<T>::kInfinity;
    range.high = Packed<T>::unpack(most).x;
    if (both_ends) {
      const float2 low = Packed<T>::unpack(packed.low), high = Packed<T>::unpack(packed.high);
      range.low = group_reduce(fminf(low.x, low.y), [](float a, float b) { return fminf(a, b); }, tail.scratch, &turn, group, warps);
      range.high = group_reduce(fmaxf(high.x, high.y), [](float a, float b) { return fmaxf(a, b); }, tail.scratch, &turn, group, warps);
    }
    const QuantizationParameters parameters(range, kUsual ? INT8_CUDA_ABSMAX : p.encoding);
    int8_t *codes = p.codes + m * p.ldq;
    int32_t sum = 0;
    for_each(by_value, [&](int chunk, const T(&v)[kChunk], uint32_t out) {
      uint32_t q[2];
      encode_chunk<T, true>(v, parameters, both_ends, out, kChunk, q);
      if (chunk >= chunks) return;
      if (sums) sum = __dp4a(static_cast<int>(q[0]), 0x01010101, __dp4a(static_cast<int>(q[1]), 0x01010101, sum));
      *reinterpret_cast<uint2 *>(codes + chunk * kChunk) = make_uint2(q[0], q[1]);
    });
    // k is a multiple of 8, ldq of 16.
    if (first == 0 && chunks * kChunk < p.ldq) *reinterpret_cast<uint2 *>(codes + chunks * kChunk) = make_uint2(0, 0);
    if (sums) {
      sum = group_reduce(sum, [](int32_t a, int32_t b) { return a + b; }, tail.scratch, &turn, group, warps);
    }
    if (first == 0) {
      p.scales[m] = parameters.scale;
      if (p.zero_points != nullptr) p.zero_points[m] = parameters.zero;
      if (sums) p.code_sums[m] = sum;
    }
    if (p.outliers.x == nullptr) return;
    T *to = static_cast<T *>(p.outliers.x);
    for (uint32_t j = 2 * first; j < min(padded, held); j += 2 * stride) {
      T pair[2];
#pragma unroll
      for (uint32_t e = 0; e < 2; ++e) {
        const T v = j + e < outliers ? reinterpret_cast<const T *>(from)[list[j + e]] : from_f32<T>(0.0f);
        pair[e] = !by_value || fabsf(to_f32(v)) >= threshold ? v : from_f32<T>(0.0f);
      }
      *reinterpret_cast<uint32_t *>(to + outlier_index(p.m, m, j)) = *reinterpret_cast<const uint32_t *>(pair);
    }
  };
  // The usual row: its outliers move to the compact operand and are replaced by zeros, so that range and codes need no mask.
  auto quantize_usual = [&](uint8_t *from, int64_t m, int group, int warps) {
    const int first = (warp & (warps - 1)) * 32 + lane, stride = warps * 32;
    const T zero = from_f32<T>(0.0f);
    T *row = reinterpret_cast<T *>(from), *to = static_cast<T *>(p.outliers.x);
#pragma unroll 1
    for (uint32_t j = 2 * first; j < padded; j += 2 * stride) {
      T pair[2] = {zero, zero};
#pragma unroll
      for (uint32_t e = 0; e < 2; ++e) {
        if (j + e >= outliers) break;
        T &value = row[list[j + e]];
        pair[e] = value;
        value = zero;
      }
      if (to != nullptr && j < held) {
        *reinterpret_cast<uint32_t *>(to + outlier_index(p.m, m, j)) = *reinterpret_cast<const uint32_t *>(pair);
      }
    }
    if (outliers > 0) named_barrier(1 + group, warps * 32);
    // Not unrolled further: this code runs a few times a launch, and instruction-cache misses take most of its time.
    uint32_t most = 0;
#pragma unroll 1
    for (int at = first; at < chunks; at += kBatch * stride) {
      uint4 v[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        v[b] = at + b * stride < chunks ? *reinterpret_cast<const uint4 *>(from + (at + b * stride) * 16) : make_uint4(0, 0, 0, 0);
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        most = larger_magnitudes<T, true>(larger_magnitudes<T, true>(most, v[b].x), v[b].y);
        most = larger_magnitudes<T, true>(larger_magnitudes<T, true>(most, v[b].z), v[b].w);
      }
    }
    most = __reduce_max_sync(0xffffffffu, larger_of_pair(most));
    if (warps > 1) {
      uint32_t *found = tail.scratch[turn++ & 1];
      if (lane == 0) found[warp] = most;
      named_barrier(1 + group, warps * 32);
      most = __reduce_max_sync(0xffffffffu, lane < warps ? found[group * warps + lane] : 0u);
    }
    Range range;
    range.infinite = most >= Packed<T>::kInfinity;
    range.high = Packed<T>::unpack(most).x;
    const QuantizationParameters parameters(range, INT8_CUDA_ABSMAX);
    uint2 *codes = reinterpret_cast<uint2 *>(p.codes + m * p.ldq);
#pragma unroll 2
    for (int chunk = first; chunk < chunks; chunk += stride) {
      const uint4 raw = *reinterpret_cast<const uint4 *>(from + chunk * 16);
      uint32_t q[2];
      encode_chunk<T, true>(reinterpret_cast<const T(&)[kChunk]>(raw), parameters, false, 0, kChunk, q);
      codes[chunk] = make_uint2(q[0], q[1]);
    }
    if (first == 0) {
      // k is a multiple of 8, ldq of 16.
      if (chunks * kChunk < p.ldq) codes[chunks] = make_uint2(0, 0);
      p.scales[m] = parameters.scale;
      if (p.zero_points != nullptr) p.zero_points[m] = parameters.zero;
    }
  };
  // Rows of slabs [first, end) by local number, `slot` giving each one's buffer.
  auto quantize_slabs = [&](int count, auto slab_of, auto slot_of) {
    turn = 0;  // new groups, whose warps may have had different numbers of rows before
    const int all = count * shape.slab_rows;
    const int warps = all > 4 ? kWarps / 8 : all > 2 ? kWarps / 4 : all > 1 ? kWarps / 2 : kWarps;
    const int group = warp >> (__ffs(warps) - 1), groups = kWarps >> (__ffs(warps) - 1), slab_shift = __ffs(shape.slab_rows) - 1;
    for (int i = group; i < all; i += groups) {
      const int index = i >> slab_shift, r = i & (shape.slab_rows - 1), slab = tail.slab[slab_of(index)];
      const int64_t m = static_cast<int64_t>(slab) * shape.slab_rows + r;
      uint8_t *from = memory + slot_of(index) * slab_bytes + r * row_bytes;
      if (m >= p.m) continue;
      if constexpr (kUsual) quantize_usual(from, m, group, warps); else quantize(from, m, group, warps);
    }
  };
  // The first piece of W's outlier columns is loaded here and used after the codes.
  const int each = ceil_div(static_cast<int>(p.n), static_cast<int>(gridDim.x)), first_n = each * static_cast<int>(blockIdx.x);
  const uint32_t pieces = min(padded, held) / kChunk;
  const int own_n = min(static_cast<int>(p.n) - first_n, each);
  const uint32_t all_pieces = p.outliers.w != nullptr && own_n > 0 ? static_cast<uint32_t>(own_n) * pieces : 0u;
  int early[kChunk];
  auto load_codes = [&](uint32_t i, int(&code)[kChunk]) {
    const int64_t n = first_n + i / pieces;
    const uint32_t j = i % pieces * kChunk;
    const int8_t *from = p.weight.codes + n * p.weight.ldw;
    const int zero = p.weight.zero_points != nullptr ? p.weight.zero_points[n] : 0;
#pragma unroll
    for (uint32_t e = 0; e < kChunk; ++e) code[e] = j + e < outliers ? __ldg(from + list[j + e]) - zero : 0;
  };
  if (p.weights_are_codes && threadIdx.x < all_pieces) load_codes(threadIdx.x, early);

  // Shared memory holds the slabs of the first buffers and the last few. Those between are loaded again while W's columns are
  // gathered, the last one first: it is the likeliest to lie in the L2 cache.
  const int held_slabs = min(taken, shape.buffers), gone = taken - held_slabs;
  // Loads into a buffer that have been waited for: one in phase 1, more for the last few.
  auto parity_of = [&](int buffer, int round) {
    const int before = buffer < ring ? 1 : 1 + (gone - (buffer - ring) + kRing - 1) / kRing;
    return static_cast<uint32_t>(before + round) & 1u;
  };
  int count = held_slabs, last = ring + gone;
#pragma unroll 1
  for (int round = 0; round == 0 || count > 0; ++round) {
    const bool back = round > 0;
    if (back) {
#pragma unroll 1
      for (int i = 0; i < count; ++i) mbarrier_wait(&tail.full[i], parity_of(i, round - 1));
    }
    quantize_slabs(
        count, [&](int i) { return back ? last + count - 1 - i : i < ring ? i : i + gone; },
        [&](int i) { return back ? i : buffer_of(i < ring ? i : i + gone); });
    fence_async_proxy();
    __syncthreads();
    count = min(last - ring, shape.buffers);
    if (threadIdx.x == 0) {
#pragma unroll 1
      for (int i = 0; i < count; ++i) load(tail.slab[last - 1 - i], i);
    }
    last -= count;
    if (!back) {
      // --- 3: W's outlier columns, eight a thread
#pragma unroll 1
      for (uint32_t i = threadIdx.x; i < all_pieces; i += kThreads) {
        const int64_t n = first_n + i / pieces;
        const uint32_t j = i % pieces * kChunk;
        alignas(16) T out[kChunk];
        if (p.weights_are_codes) {
          if (i != threadIdx.x) load_codes(i, early);
#pragma unroll
          for (uint32_t e = 0; e < kChunk; ++e) out[e] = from_f32<T>(static_cast<float>(early[e]));
        } else {
#pragma unroll
          for (uint32_t e = 0; e < kChunk; ++e) {
            out[e] = j + e < outliers ? from_f32<T>(outlier_weight<T>(p.weight, n, list[j + e])) : from_f32<T>(0.0f);
          }
        }
        *reinterpret_cast<uint4 *>(static_cast<T *>(p.outliers.w) + outlier_index(p.n, n, j)) = *reinterpret_cast<const uint4 *>(out);
      }
    }
  }
#endif
}

// How x is partitioned; slabs == 0: this kernel does not support it.
Shape shape_of(const PrologueParams &p, int multiprocessors) {
  const int64_t row_bytes = p.k * 2, room = kBytes - static_cast<int64_t>(sizeof(Tail)) - row_bytes - 128;
  Shape shape{kMaxSlabRows, 0, 0, kRing - 1, kRing - 1};
  auto fitting = [&] { return room / (shape.slab_rows * row_bytes); };
  // At most half a block's rows, so that the blocks end together.
  while (shape.slab_rows > 1 && (2 * shape.slab_rows > ceil_div<int64_t>(p.m, multiprocessors) || fitting() <= kRing)) shape.slab_rows /= 2;
  const int64_t slabs = ceil_div<int64_t>(p.m, shape.slab_rows);
  if (slabs >= kSinglePassSlabs || fitting() <= kRing) return shape;
  shape.slabs = static_cast<int>(slabs);
  // For as many slabs as a block will have: the GEMM's blocks need the rest of the memory to start beside these.
  const int64_t wanted = ceil_div<int64_t>(slabs, multiprocessors) + kRing, most = wanted < kMaxBuffers ? wanted : kMaxBuffers;
  shape.buffers = static_cast<int>(fitting() < most ? fitting() : most);
  // With more loading at once, the last blocks would have none.
  if (slabs <= multiprocessors) shape.ahead = shape.first_slabs = 1;
  if (slabs > 4 * multiprocessors) shape.first_slabs = kRing;
  return shape;
}

template <typename T, bool kUsual>
int8_cuda_status launch_typed(const PrologueParams &p, cudaStream_t stream, int multiprocessors) {
  const Shape shape = shape_of(p, multiprocessors);
  const size_t shared = round_up(static_cast<size_t>(shape.buffers) * shape.slab_rows * p.k * 2, size_t{128}) + sizeof(Tail) +
                        static_cast<size_t>(p.k) * 2;
  auto *kernel = single_pass<T, kUsual>;
  INT8_CUDA_TRY(allow_shared(kernel, kBytes));
  Launch launch(dim3(static_cast<unsigned>(multiprocessors)), dim3(kThreads), shared, stream, true);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&launch.config, kernel, p, shape));
  return INT8_CUDA_OK;
}

}  // namespace

bool single_pass_supports(const PrologueParams &p, const Device &device) {
  const bool aligned = p.ldx % kChunk == 0 && reinterpret_cast<uintptr_t>(p.x) % 16 == 0 && p.k % kChunk == 0;
  return device.major == 9 && p.element != INT8_CUDA_F32 && p.rule != INT8_CUDA_RULE_NONE && aligned && p.k > 0 &&
         p.k <= kSinglePassInner && p.granularity == INT8_CUDA_PER_ROW && p.counters != nullptr && p.outliers.count != nullptr &&
         shape_of(p, device.multiprocessors).slabs > 0;
}

int8_cuda_status launch_single_pass(const PrologueParams &p, cudaStream_t stream, int multiprocessors) {
  INT8_CUDA_PASS(launch_thresholds(p, stream, true));
  const bool usual = p.encoding == INT8_CUDA_ABSMAX && p.rule == INT8_CUDA_RULE_ABSOLUTE && p.code_sums == nullptr &&
                     p.outlier_granularity == INT8_CUDA_COLUMN && p.row_maximum == INT8_CUDA_MAXIMUM_PAPER;
  if (p.element == INT8_CUDA_F16) {
    return usual ? launch_typed<__half, true>(p, stream, multiprocessors) : launch_typed<__half, false>(p, stream, multiprocessors);
  }
  return usual ? launch_typed<__nv_bfloat16, true>(p, stream, multiprocessors) : launch_typed<__nv_bfloat16, false>(p, stream, multiprocessors);
}

}  // namespace int8_cuda
