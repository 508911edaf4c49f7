// Workspaces: which arrays of a call lie at which byte offsets.
#pragma once

#include "common/status.cuh"
#include "common/types.cuh"

namespace int8_cuda {

constexpr int64_t kMaxInner = 133144;  // (2^31 - 1) / 127^2
constexpr int64_t kMaxSize = 1 << 30;

// Hands out byte ranges from multiples of 256.
struct Arena {
  uint64_t used = 0;
  uint64_t take(int64_t bytes) {
    const uint64_t at = used;
    used = round_up<uint64_t>(used + static_cast<uint64_t>(bytes), 256);
    return at;
  }
};

template <typename T>
T *at(void *workspace, uint64_t offset) {
  return reinterpret_cast<T *>(static_cast<uint8_t *>(workspace) + offset);
}

// Of the prologue's kernels, without the counters of the single pass.
struct RowsLayout {
  uint64_t thresholds, ranges, mask;
};
RowsLayout lay_out_rows(Arena *arena, int64_t rows, int64_t inner, int granularity, int rule);

// Columns of the compact outlier operands of a WGMMA: all, or as many as memory is granted for; beyond them MMA computes y.
int64_t outlier_capacity(int64_t m, int64_t n, int64_t k);

struct LinearLayout {
  int8_cuda_linear_layout visible;
  RowsLayout rows;
  uint64_t counters, outlier_x, outlier_w;
  uint64_t input;    // T [m, k]: transform(x), where the algorithm does not compute it
  int64_t capacity;  // columns of outlier_x and outlier_w; 0: none are made
};
// Resolves and checks the algorithm, too.
int8_cuda_status lay_out_linear(const int8_cuda_linear_params &params, const Device &device, LinearLayout *layout);

}  // namespace int8_cuda
