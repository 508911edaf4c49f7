// The prologue of a decomposed layer as one kernel (sm_90), for 16-bit rows of which several fit into shared memory.
#pragma once

#include "prologue/prologue.cuh"

namespace int8_cuda {

// Longest row, and most slabs of rows.
constexpr int kSinglePassInner = 16384, kSinglePassSlabs = 8192;
// Bytes of its counters (PrologueParams::counters). Zero before their first use, by work that has ended; afterwards zeroed by
// the wgmma kernel behind it, before its PDL trigger, or by itself (resets_counters).
constexpr int kSinglePassCounterBytes = 4096;

// Words of them that a run over k columns leaves non-zero: two cache lines of counters, then the mask.
constexpr int single_pass_counter_words(int64_t k) { return 64 + static_cast<int>(ceil_div<int64_t>(k, 32)); }

bool single_pass_supports(const PrologueParams &params, const Device &device);
int8_cuda_status launch_single_pass(const PrologueParams &params, cudaStream_t stream, int multiprocessors);

}  // namespace int8_cuda
