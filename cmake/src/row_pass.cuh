// The row pass of a decomposed layer as one kernel (sm_90), for 16-bit rows that fit into shared memory several at a time.
#pragma once

#include "rows.cuh"

namespace int8_cuda {

// Longest row it takes, and so many slabs of rows at most.
constexpr int kRowPassInner = 16384, kRowPassSlabs = 8192;
// Bytes of its state (RowsParams::state). Zero before its first use, by something that has ended; the wgmma kernel after a row pass
// zeroes it again, before it lets its own successor start, which may be the next row pass and takes tickets at once.
constexpr int kRowPassState = 4096;

// Words of it that a row pass over k columns leaves non-zero: tickets and counts on two cache lines, then the mask.
constexpr int row_pass_state_words(int64_t k) { return 64 + static_cast<int>(ceil_div<int64_t>(k, 32)); }

bool row_pass_takes(const RowsParams &params, const Device &device);
int8_cuda_status launch_row_pass(const RowsParams &params, cudaStream_t stream, int multiprocessors);

}  // namespace int8_cuda
