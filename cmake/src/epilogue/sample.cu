// The next token of each row of logits, in two kernels. `scan_logits`: many blocks a row find the argmax of their tile, the largest
// logit of every 32 and, where all tokens are in the draw, their weights' total. `choose_tokens`: one block a row ends the argmax or
// draws.
//
// Windows of tokens that follow one another in the order of the sampler are sorted in shared memory; most draws end in the first.
// Its tokens are found among the groups of 32 whose largest logit is at least the k-th largest of all groups', a lower bound of
// the k-th largest logit. Beyond it, weights are summed in bins of neighbouring logits, and the window is the one bin in which the
// draw ends. Where top-k cuts behind the first window, where a bin has more tokens than a window, or where the bound leaves too
// many: windows one after another by radix select.
//
// A token's key orders as (logit, lower id): bits of the logit in ascending order << 32 | ~id. Weights and their sums are f64.
#include <cfloat>

#include "common/launch.cuh"
#include "epilogue/sample.cuh"

namespace int8_cuda {
namespace {

using Params = int8_cuda_sample_params;

constexpr int kGroup = 32;
constexpr int kScanThreads = 256, kTile = kScanThreads * 4;  // a tile, or four, a block
constexpr int kThreads = 1024, kWarps = kThreads / 32;
constexpr int kWindow = 4096;          // keys and sums of a window: 64 KB of shared memory
constexpr int kFirstWindow = 512;
constexpr int kGroupsEach = 8;         // groups a thread holds in registers: vocabularies up to 262,144
constexpr int kDigitBits = 11, kBins = 1 << kDigitBits;
// Weights in bins are integers in units of 2^-43, so that their sums do not depend on the order; 2^20 of them fit into 64 bits.
constexpr double kWeightUnit = 0x1p-43;
constexpr int64_t kBinnedVocabulary = 1 << 20;
constexpr float kNegligible = 50.0f;   // e^-50 times the vocabulary's size is below half a unit of the largest weight, 1

struct TileResult {
  float largest;
  int32_t index;  // the first of equals; -1: there is a NaN
  double total;   // of exp((logit - largest) / temperature)
};

struct Workspace {
  TileResult *tiles;  // [rows, tiles]
  float *groups;      // [rows, groups]
  int32_t tile_count, group_count;
};

__device__ __forceinline__ bool is_greedy(const int8_cuda_sampler &s) { return !(s.temperature > 0.0f); }
__device__ __forceinline__ bool has_top_k(const int8_cuda_sampler &s, int64_t vocabulary) { return s.top_k > 0 && s.top_k < vocabulary; }

// Larger, or equal and earlier.
__device__ __forceinline__ void keep_first_largest(float &largest, int32_t &index, float other, int32_t other_index) {
  if (other > largest || (other == largest && other_index < index)) {
    largest = other;
    index = other_index;
  }
}

// kThreadCount threads: the first of the largest, and whether any thread had a NaN; the same in all threads.
template <int kThreadCount>
__device__ __forceinline__ bool reduce_largest(float &largest, int32_t &index, bool nan) {
  __shared__ float values[32];
  __shared__ int32_t indices[32];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    keep_first_largest(largest, index, __shfl_xor_sync(0xffffffffu, largest, offset), __shfl_xor_sync(0xffffffffu, index, offset));
  }
  if (threadIdx.x % 32 == 0) {
    values[threadIdx.x / 32] = largest;
    indices[threadIdx.x / 32] = index;
  }
  nan = __syncthreads_or(nan);
  const int from = threadIdx.x % 32 % (kThreadCount / 32);
  largest = values[from];
  index = indices[from];
#pragma unroll
  for (int offset = kThreadCount / 64; offset > 0; offset /= 2) {
    keep_first_largest(largest, index, __shfl_xor_sync(0xffffffffu, largest, offset), __shfl_xor_sync(0xffffffffu, index, offset));
  }
  return nan;
}

// The sum of all threads' values, the same in all; its order is fixed.
template <int kThreadCount>
__device__ __forceinline__ double reduce_total(double v) {
  __shared__ double sums[32];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  __syncthreads();
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
  __syncthreads();
  v = sums[threadIdx.x % 32 % (kThreadCount / 32)];
#pragma unroll
  for (int offset = kThreadCount / 64; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}

template <int kLoads>
__global__ void __launch_bounds__(kScanThreads) scan_logits(const __grid_constant__ Params p, const Workspace ws, bool vector) {
  pdl_trigger();
  pdl_wait();
  const int64_t row = blockIdx.x / ws.tile_count;
  const int tile = blockIdx.x % ws.tile_count, vocabulary = static_cast<int>(p.vocabulary);
  const float *logits = p.logits + row * p.ld;
  const int8_cuda_sampler sampler = p.samplers[row];
  float v[kLoads][4];
#pragma unroll
  for (int j = 0; j < kLoads; ++j) {
    const int id = (tile * kLoads + j) * kTile + static_cast<int>(threadIdx.x) * 4;
    if (vector && id + 4 <= vocabulary) {
      *reinterpret_cast<float4 *>(v[j]) = *reinterpret_cast<const float4 *>(logits + id);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) v[j][i] = id + i < vocabulary ? logits[id + i] : -INFINITY;
    }
  }
  float largest = -INFINITY;
  int32_t index = INT32_MAX;
  bool nan = false;
#pragma unroll
  for (int j = 0; j < kLoads; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      nan |= v[j][i] != v[j][i];
      keep_first_largest(largest, index, v[j][i], (tile * kLoads + j) * kTile + static_cast<int>(threadIdx.x) * 4 + i);
    }
  }
  nan = reduce_largest<kScanThreads>(largest, index, nan);
  double total = 0.0;
  if (!is_greedy(sampler)) {
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      float group = fmaxf(fmaxf(v[j][0], v[j][1]), fmaxf(v[j][2], v[j][3]));
#pragma unroll
      for (int offset = 4; offset > 0; offset /= 2) group = fmaxf(group, __shfl_xor_sync(0xffffffffu, group, offset));
      const int g = ((tile * kLoads + j) * kTile + static_cast<int>(threadIdx.x) * 4) / kGroup;
      if (threadIdx.x % 8 == 0 && g < ws.group_count) ws.groups[row * ws.group_count + g] = group;
    }
    if (!has_top_k(sampler, p.vocabulary) && largest > -INFINITY) {
      const double temperature = sampler.temperature;
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (v[j][i] >= largest - kNegligible * sampler.temperature) {
            total += exp((static_cast<double>(v[j][i]) - static_cast<double>(largest)) / temperature);
          }
        }
      }
      total = reduce_total<kScanThreads>(total);
    }
  }
  if (threadIdx.x == 0) ws.tiles[row * ws.tile_count + tile] = TileResult{largest, nan ? -1 : index, total};
}

// ---- Draws ----

__device__ __forceinline__ uint32_t ordered(float v) {
  const uint32_t bits = __float_as_uint(v);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ uint64_t key_of(float logit, int id) {
  return static_cast<uint64_t>(ordered(logit)) << 32 | ~static_cast<uint32_t>(id);
}
__device__ __forceinline__ float logit_of(uint64_t key) {
  const uint32_t bits = static_cast<uint32_t>(key >> 32);
  return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}
__device__ __forceinline__ int32_t id_of(uint64_t key) { return static_cast<int32_t>(~static_cast<uint32_t>(key)); }

struct Shared {
  uint64_t keys[kWindow];
  union {
    double sums[kWindow];  // of the weights of the window's tokens up to this one
    uint32_t radix_bins[kBins];
  };
  uint32_t bin_counts[kBins], bin_low[kBins], bin_high[kBins];  // tokens and weights, of neighbouring logits from the largest on
  uint64_t warp_weights[kWarps];
  uint64_t bin_before;
  double warp_sums[kWarps];
  uint32_t warp_counts[kWarps];
  uint32_t counters[3];
  uint32_t count, digit, above, in_bin, bin_tokens_before;
  int32_t hit, last_bin;
};

// One row. All threads hold the same values and take part in every function.
struct Draw {
  Shared &s;
  const float *logits, *groups;
  int vocabulary, group_count;
  float largest, floor;  // logits below floor have no weight
  double temperature;
  int64_t first_size;    // tokens of the first window
  bool binnable;         // all tokens are in the draw
  bool binned;           // s.bin_... are filled
  bool first_loaded;
  bool complete;         // no token behind the window has a weight
  int count;             // tokens of the window, sorted in s.keys
  uint64_t last;         // the key of the last one

  // Sorts s.keys[0, n) from the largest on, n <= kWindow; 0 behind. Bitonic: up to a distance of 32, the 32 pairs of a warp lie
  // in 64 keys of its own.
  __device__ void sort(int n) {
    int size = 2;
    while (size < n) size *= 2;
    for (int i = n + static_cast<int>(threadIdx.x); i < size; i += kThreads) s.keys[i] = 0;
    __syncthreads();
    for (int run = 2; run <= size; run *= 2) {
      for (int distance = run / 2; distance > 0; distance /= 2) {
        for (int pair = threadIdx.x; pair < size / 2; pair += kThreads) {
          const int a = 2 * pair - (pair & (distance - 1)), b = a + distance;
          const uint64_t low = s.keys[a], high = s.keys[b];
          if ((low < high) == ((a & run) == 0)) {
            s.keys[a] = high;
            s.keys[b] = low;
          }
        }
        const int next = distance > 1 ? distance / 2 : run;
        if (distance > 32 || next > 32) {
          __syncthreads();
        } else {
          __syncwarp();
        }
      }
    }
    __syncthreads();
  }

  __device__ void append(uint64_t key) {
    const uint32_t at = atomicAdd(&s.count, 1u);
    if (at < kWindow) s.keys[at] = key;
  }

  // The first window by the groups' largest logits; false: too many candidates.
  __device__ bool collect_from_groups(int wanted) {
    if (wanted > group_count / 2 || group_count > kGroupsEach * kThreads) return false;
    uint32_t keys[kGroupsEach];
#pragma unroll
    for (int j = 0; j < kGroupsEach; ++j) {
      const int g = static_cast<int>(threadIdx.x) + j * kThreads;
      keys[j] = g < group_count ? ordered(groups[g]) : 0;
    }
    if (threadIdx.x < 3) s.counters[threadIdx.x] = 0;
    if (threadIdx.x == 0) s.count = 0;
    __syncthreads();
    // A bound that at least `wanted` groups reach, and not many more: bit by bit. The counters take turns, so that one barrier a bit
    // is enough.
    uint32_t bound = 0;
    for (int bit = 31; bit >= 0; --bit) {
      const uint32_t tried = bound | 1u << bit;
      uint32_t reached = 0;
#pragma unroll
      for (int j = 0; j < kGroupsEach; ++j) reached += keys[j] >= tried ? 1 : 0;
      reached = __reduce_add_sync(0xffffffffu, reached);
      const int turn = bit % 3;
      if (threadIdx.x % 32 == 0 && reached > 0) atomicAdd(&s.counters[turn], reached);
      if (threadIdx.x == 0) s.counters[(turn + 2) % 3] = 0;
      __syncthreads();
      const uint32_t all = s.counters[turn];
      if (all >= static_cast<uint32_t>(wanted)) {
        bound = tried;
        if (all <= static_cast<uint32_t>(wanted + wanted / 4 + 32)) break;
      }
    }
    bound = max(bound, ordered(floor));
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < kGroupsEach; ++j) {
      uint32_t pending = __ballot_sync(0xffffffffu, keys[j] >= bound);
#pragma unroll 4
      for (; pending != 0; pending &= pending - 1) {
        const int id = (warp * 32 + __ffs(static_cast<int>(pending)) - 1 + j * kThreads) * kGroup + lane;
        const float logit = id < vocabulary ? logits[id] : -INFINITY;
        if (id < vocabulary && ordered(logit) >= bound) append(key_of(logit, id));
      }
    }
    __syncthreads();
    const int found = static_cast<int>(s.count);
    __syncthreads();
    if (found > kWindow) return false;
    sort(found);
    count = found < wanted ? found : wanted;
    return true;
  }

  template <typename F>
  __device__ void for_keys_below(uint64_t upper, F f) {
    for (int id = threadIdx.x; id < vocabulary; id += kThreads) {
      const float logit = logits[id];
      const uint64_t key = key_of(logit, id);
      if (logit >= floor && key < upper) f(key);
    }
  }

  // The `wanted` largest keys below `upper`, or all: radix select of the smallest of them, 11 bits a pass.
  __device__ void collect_by_radix(uint64_t upper, int wanted) {
    uint64_t prefix = 0;
    uint32_t need = static_cast<uint32_t>(wanted);
    __syncthreads();  // the last window has been read
    int shift = 64;
    while (shift > 0) {
      const int bits = shift < kDigitBits ? shift : kDigitBits, above_shift = shift;
      shift -= bits;
      for (int i = threadIdx.x; i < kBins; i += kThreads) s.radix_bins[i] = 0;
      if (threadIdx.x == 0) s.digit = kBins;
      __syncthreads();
      for_keys_below(upper, [&](uint64_t key) {
        if (above_shift == 64 || key >> above_shift == prefix) atomicAdd(&s.radix_bins[key >> shift & ((1u << bits) - 1)], 1u);
      });
      __syncthreads();
      // A thread has two bins; how many keys lie in higher ones.
      const int high = kBins - 1 - 2 * static_cast<int>(threadIdx.x);
      const uint32_t in_high = s.radix_bins[high], in_low = s.radix_bins[high - 1];
      uint32_t until = in_high + in_low;
      const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        const uint32_t other = __shfl_up_sync(0xffffffffu, until, offset);
        if (lane >= offset) until += other;
      }
      if (lane == 31) s.warp_counts[warp] = until;
      __syncthreads();
      for (int i = 0; i < warp; ++i) until += s.warp_counts[i];
      const uint32_t before = until - in_high - in_low;
      if (before < need && need <= until) {
        const bool is_high = need <= before + in_high;
        s.digit = is_high ? high : high - 1;
        s.above = is_high ? before : before + in_high;
        s.in_bin = is_high ? in_high : in_low;
      }
      __syncthreads();
      const uint32_t digit = s.digit, in_bin = s.in_bin;
      if (digit == kBins) {  // fewer than wanted, in the first pass only
        prefix = 0;
        shift = 0;
        break;
      }
      need -= s.above;
      prefix = prefix << bits | digit;
      __syncthreads();
      if (in_bin == need) break;
    }
    const uint64_t smallest = prefix << shift;
    __syncthreads();
    if (threadIdx.x == 0) s.count = 0;
    __syncthreads();
    for_keys_below(upper, [&](uint64_t key) {
      if (key >= smallest) append(key);
    });
    __syncthreads();
    count = static_cast<int>(s.count);
    __syncthreads();
    sort(count);
  }

  __device__ double weight_of(float logit) const { return exp((static_cast<double>(logit) - static_cast<double>(largest)) / temperature); }

  // Weights of the window's tokens, summed up.
  __device__ void weigh() {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    double base = 0.0;
    for (int first = 0; first < count; first += kThreads) {
      const int i = first + static_cast<int>(threadIdx.x);
      double sum = i < count ? weight_of(logit_of(s.keys[i])) : 0.0;
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        const double other = __shfl_up_sync(0xffffffffu, sum, offset);
        if (lane >= offset) sum += other;
      }
      if (lane == 31) s.warp_sums[warp] = sum;
      __syncthreads();
      double before = base;
      const int warps = count - first < kThreads ? ceil_div(count - first, 32) : kWarps;
      for (int w = 0; w < warps; ++w) {
        if (w == warp) s.sums[i] = before + sum;
        before += s.warp_sums[w];
      }
      base = before;
      __syncthreads();
    }
    last = count > 0 ? s.keys[count - 1] : 0;
  }

  // The first of the window's first `usable` tokens up to which base and their weights are > goal, or, with or_equal, >= goal;
  // INT32_MAX: none.
  __device__ int first_reaching(double base, double goal, bool or_equal, int usable) {
    if (threadIdx.x == 0) s.hit = INT32_MAX;
    __syncthreads();
    auto reaches = [&](int token) { return or_equal ? base + s.sums[token] >= goal : base + s.sums[token] > goal; };
    for (int i = threadIdx.x; i < usable; i += kThreads) {
      if (reaches(i) && (i == 0 || !reaches(i - 1))) atomicMin(&s.hit, i);
    }
    __syncthreads();
    const int hit = s.hit;
    __syncthreads();
    return hit;
  }

  // The bin of a logit of at least floor: ascending as logits descend.
  __device__ int bin_of(float logit) const {
    const float bin = (largest - logit) * (static_cast<float>(kBins) / (kNegligible * static_cast<float>(temperature)));
    return bin < static_cast<float>(kBins - 1) ? static_cast<int>(bin) : kBins - 1;
  }

  __device__ void fill_bins() {
    for (int i = threadIdx.x; i < kBins; i += kThreads) s.bin_counts[i] = s.bin_low[i] = s.bin_high[i] = 0;
    __syncthreads();
    for (int id = threadIdx.x; id < vocabulary; id += kThreads) {
      const float logit = logits[id];
      if (!(logit >= floor)) continue;
      const int bin = bin_of(logit);
      const uint64_t weight = __double2ull_rn(weight_of(logit) * (1.0 / kWeightUnit));
      const uint32_t low = static_cast<uint32_t>(weight), before = atomicAdd(&s.bin_low[bin], low);
      const uint32_t high = static_cast<uint32_t>(weight >> 32) + (before + low < before ? 1 : 0);
      if (high != 0) atomicAdd(&s.bin_high[bin], high);
      atomicAdd(&s.bin_counts[bin], 1u);
    }
    __syncthreads();
    binned = true;
  }

  struct Found {
    uint64_t key;    // of the token, or of the last one
    double sum;      // of the weights up to it
    int64_t tokens;  // up to it
  };

  // `walk` with the one bin as window that the goal lies in; false: it has more tokens than a window.
  __device__ bool walk_bins(double goal, bool or_equal, int64_t limit, Found *found) {
    if (threadIdx.x == 0) {
      s.hit = INT32_MAX;
      s.last_bin = 0;
    }
    // A thread has two bins; weights and tokens up to them.
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, bin = 2 * static_cast<int>(threadIdx.x);
    const uint64_t first = static_cast<uint64_t>(s.bin_high[bin]) << 32 | s.bin_low[bin];
    const uint64_t second = static_cast<uint64_t>(s.bin_high[bin + 1]) << 32 | s.bin_low[bin + 1];
    const uint32_t first_tokens = s.bin_counts[bin], second_tokens = s.bin_counts[bin + 1];
    uint64_t weights = first + second;
    uint32_t tokens = first_tokens + second_tokens;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const uint64_t other = __shfl_up_sync(0xffffffffu, weights, offset);
      const uint32_t other_tokens = __shfl_up_sync(0xffffffffu, tokens, offset);
      if (lane >= offset) {
        weights += other;
        tokens += other_tokens;
      }
    }
    if (lane == 31) {
      s.warp_weights[warp] = weights;
      s.warp_counts[warp] = tokens;
    }
    __syncthreads();
    for (int w = 0; w < warp; ++w) {
      weights += s.warp_weights[w];
      tokens += s.warp_counts[w];
    }
    auto reaches = [&](uint64_t sum) {
      const double value = static_cast<double>(sum) * kWeightUnit;
      return or_equal ? value >= goal : value > goal;
    };
    if (second_tokens > 0) {
      atomicMax(&s.last_bin, bin + 1);
    } else if (first_tokens > 0) {
      atomicMax(&s.last_bin, bin);
    }
    if (first_tokens > 0 && reaches(weights - second)) {
      atomicMin(&s.hit, bin);
    } else if (second_tokens > 0 && reaches(weights)) {
      atomicMin(&s.hit, bin + 1);
    }
    __syncthreads();
    const int wanted = s.hit < kBins ? s.hit : s.last_bin;
    if (wanted == bin || wanted == bin + 1) {
      s.bin_before = wanted == bin ? weights - second - first : weights - second;
      s.bin_tokens_before = wanted == bin ? tokens - second_tokens - first_tokens : tokens - second_tokens;
    }
    if (threadIdx.x == 0) s.count = 0;
    __syncthreads();
    if (s.bin_counts[wanted] > kWindow) return false;
    for (int id = threadIdx.x; id < vocabulary; id += kThreads) {
      const float logit = logits[id];
      if (logit >= floor && bin_of(logit) == wanted) append(key_of(logit, id));
    }
    first_loaded = false;
    __syncthreads();
    count = static_cast<int>(s.count);
    const double base = static_cast<double>(s.bin_before) * kWeightUnit;
    const int64_t passed = s.bin_tokens_before;
    sort(count);
    weigh();
    int usable = limit - passed < count ? static_cast<int>(limit - passed) : count;
    usable = usable > 0 ? usable : 1;
    const int reached = first_reaching(base, goal, or_equal, usable), token = reached < usable ? reached : usable - 1;
    *found = Found{s.keys[token], base + s.sums[token], passed + token + 1};
    __syncthreads();
    return true;
  }

  __device__ void load_first() {
    if (first_loaded) return;
    if (!collect_from_groups(static_cast<int>(first_size))) collect_by_radix(~0ull, static_cast<int>(first_size));
    complete = count < first_size;
    weigh();
    first_loaded = true;
  }
  __device__ void load_next(int64_t wanted) {
    first_loaded = false;
    const int size = wanted < kWindow ? static_cast<int>(wanted) : kWindow;
    collect_by_radix(last, size);
    complete = count < size;
    weigh();
  }

  // The first of `limit` tokens up to which the weights' sum is > goal, or, with or_equal, >= goal.
  __device__ Found walk(double goal, bool or_equal, int64_t limit) {
    Found found{};
    if (binned && walk_bins(goal, or_equal, limit, &found)) return found;
    load_first();
    for (;;) {
      const double base = found.sum;
      const int64_t passed = found.tokens;
      const int usable = limit - passed < count ? static_cast<int>(limit - passed) : count;
      const int hit = first_reaching(base, goal, or_equal, usable);
      if (hit < usable) return Found{s.keys[hit], base + s.sums[hit], passed + hit + 1};
      if (usable > 0) found = Found{s.keys[usable - 1], base + s.sums[usable - 1], passed + usable};
      if (found.tokens >= limit || complete) return found;
      if (binnable && !binned) {
        fill_bins();
        Found in_bin;
        if (walk_bins(goal, or_equal, limit, &in_bin)) return in_bin;
      }
      load_next(limit - found.tokens);
    }
  }
};

__global__ void __launch_bounds__(kThreads) choose_tokens(const __grid_constant__ Params p, const Workspace ws) {
  extern __shared__ __align__(16) uint8_t memory[];
  Shared &shared = *reinterpret_cast<Shared *>(memory);
  pdl_trigger();
  pdl_wait();
  const int64_t row = blockIdx.x;
  const TileResult *tiles = ws.tiles + row * ws.tile_count;
  const int8_cuda_sampler sampler = p.samplers[row];
  float largest = -INFINITY;
  int32_t index = INT32_MAX;
  bool nan = false;
  for (int t = threadIdx.x; t < ws.tile_count; t += kThreads) {
    const TileResult tile = tiles[t];
    nan |= tile.index < 0;
    keep_first_largest(largest, index, tile.largest, tile.index);
  }
  nan = reduce_largest<kThreads>(largest, index, nan);
  // Infinite logits have no distribution: the largest.
  if (nan || is_greedy(sampler) || isinf(largest)) {
    if (threadIdx.x == 0) p.tokens[row] = nan ? -1 : index;
    return;
  }
  const bool cut = has_top_k(sampler, p.vocabulary);
  const int64_t limit = cut ? sampler.top_k : p.vocabulary;
  const int64_t groups_half = ws.group_count > 1 ? ws.group_count / 2 : 1, few = groups_half < kFirstWindow ? groups_half : kFirstWindow;
  Draw draw{shared, p.logits + row * p.ld, ws.groups + row * ws.group_count, static_cast<int>(p.vocabulary), ws.group_count,
            largest, fmaxf(largest - kNegligible * sampler.temperature, -FLT_MAX), sampler.temperature,
            cut ? (limit < kWindow ? limit : kWindow) : (limit < few ? limit : few), !cut && p.vocabulary <= kBinnedVocabulary, false, false, false, 0, 0};
  double total = 0.0;
  if (cut) {
    total = draw.walk(INFINITY, false, limit).sum;
  } else {
    for (int t = threadIdx.x; t < ws.tile_count; t += kThreads) {
      const TileResult tile = tiles[t];
      if (tile.largest >= draw.floor) {
        total += tile.total * exp((static_cast<double>(tile.largest) - static_cast<double>(largest)) / draw.temperature);
      }
    }
    total = reduce_total<kThreads>(total);
  }
  int64_t kept = limit;
  if (sampler.top_p < 1.0f) {
    const Draw::Found found = draw.walk(static_cast<double>(sampler.top_p) * total, true, limit);
    total = found.sum;
    kept = found.tokens;
  }
  const Draw::Found found = draw.walk(sampler.uniform * total, false, kept);
  if (threadIdx.x == 0) p.tokens[row] = id_of(found.key);
}

struct Layout {
  int64_t tiles, groups;
  uint64_t groups_at, total;
};
Layout lay_out(int64_t rows, int64_t vocabulary) {
  Layout l{ceil_div<int64_t>(vocabulary, kTile), ceil_div<int64_t>(vocabulary, kGroup), 0, 0};
  l.groups_at = round_up<uint64_t>(static_cast<uint64_t>(rows * l.tiles) * sizeof(TileResult), 256);
  l.total = l.groups_at + round_up<uint64_t>(static_cast<uint64_t>(rows * l.groups) * sizeof(float), 256);
  return l;
}

}  // namespace

uint64_t sample_bytes(int64_t rows, int64_t vocabulary) { return lay_out(rows, vocabulary).total; }

int8_cuda_status launch_sample(const Params &p, int multiprocessors, bool overlap) {
  const Layout l = lay_out(p.rows, p.vocabulary);
  // Four tiles a block where one would give more blocks than run at the same time, eight a multiprocessor.
  const bool large = l.tiles * p.rows > static_cast<int64_t>(multiprocessors) * 8;
  const int64_t tiles = large ? ceil_div<int64_t>(l.tiles, 4) : l.tiles;
  if (tiles * p.rows > INT32_MAX) return INT8_CUDA_UNSUPPORTED;
  const Workspace ws{static_cast<TileResult *>(p.workspace),
                     reinterpret_cast<float *>(static_cast<uint8_t *>(p.workspace) + l.groups_at), static_cast<int32_t>(tiles),
                     static_cast<int32_t>(l.groups)};
  const bool vector = reinterpret_cast<uintptr_t>(p.logits) % 16 == 0 && p.ld % 4 == 0;
  const cudaStream_t stream = static_cast<cudaStream_t>(p.stream);
  Launch scan(dim3(static_cast<unsigned>(tiles * p.rows)), dim3(kScanThreads), 0, stream, overlap);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&scan.config, large ? scan_logits<4> : scan_logits<1>, p, ws, vector));
  INT8_CUDA_TRY(allow_shared(choose_tokens, sizeof(Shared)));
  Launch choose(dim3(static_cast<unsigned>(p.rows)), dim3(kThreads), sizeof(Shared), stream, overlap);
  INT8_CUDA_TRY(cudaLaunchKernelEx(&choose.config, choose_tokens, p, ws));
  return INT8_CUDA_OK;
}

}  // namespace int8_cuda
