// Checks of arguments that several entry points share.
#pragma once

#include "api/workspace.cuh"

namespace int8_cuda {

inline bool aligned(const void *pointer, uintptr_t to) { return reinterpret_cast<uintptr_t>(pointer) % to == 0; }

inline int64_t element_bytes(int element) { return element == INT8_CUDA_F32 ? 4 : 2; }

inline bool valid_sizes(int64_t m, int64_t n, int64_t k) {
  return m >= 0 && n >= 0 && k >= 0 && m <= kMaxSize && n <= kMaxSize && k <= kMaxInner;
}

// y in x's element type or in f32.
inline bool valid_output(int y_element, int element) { return y_element == element || y_element == INT8_CUDA_F32; }

inline bool valid_store(int store) { return store == INT8_CUDA_OVERWRITE || store == INT8_CUDA_ACCUMULATE; }

// A function of the prologue, without its pointers.
inline bool valid_function(const int8_cuda_transform &f) {
  const bool known = f.function >= INT8_CUDA_IDENTITY && f.function <= INT8_CUDA_GATED;
  return known && f.activation >= INT8_CUDA_RELU && f.activation <= INT8_CUDA_SILU;
}

// Whether x is not what is quantised.
inline bool transforms(const int8_cuda_linear_params &p) { return p.transform.function != INT8_CUDA_IDENTITY || p.x_element != p.element; }

// How x is quantised.
struct Settings {
  int element, encoding, granularity, rule, outlier_granularity, row_maximum;
  float threshold;
};

template <typename Params>
Settings settings_of(const Params &p) {
  return {p.element, p.encoding, p.granularity, p.rule, p.outlier_granularity, p.row_maximum, p.threshold};
}

inline bool valid_settings(const Settings &s) {
  const auto within = [](int value, int last) { return value >= 0 && value <= last; };
  return within(s.element, INT8_CUDA_F32) && within(s.encoding, INT8_CUDA_ZEROPOINT) && within(s.granularity, INT8_CUDA_PER_TENSOR) &&
         within(s.rule, INT8_CUDA_RULE_MEAN) && within(s.outlier_granularity, INT8_CUDA_VALUE) &&
         within(s.row_maximum, INT8_CUDA_MAXIMUM_BITSANDBYTES) && (s.rule == INT8_CUDA_RULE_NONE || s.threshold > 0.0f);
}

// A workspace of at least `needed` bytes.
inline bool valid_workspace(const void *workspace, size_t bytes, uint64_t needed) {
  return needed == 0 || (workspace != nullptr && bytes >= needed && aligned(workspace, 256));
}

}  // namespace int8_cuda
