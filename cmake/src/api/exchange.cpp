// Entry points of what ranks exchange.
#include "api/validation.cuh"
#include "exchange/exchange.cuh"
#include "prologue/prologue.cuh"
#include "prologue/transform.cuh"

using namespace int8_cuda;

namespace {

bool valid_signals(const int8_cuda_signals &s) {
  if (s.ranks < 1 || s.ranks > INT8_CUDA_MAX_RANKS || s.rank < 0 || s.rank >= s.ranks || s.failed == nullptr) return false;
  for (int rank = 0; rank < s.ranks; ++rank) {
    if (s.of_rank[rank] == nullptr || !aligned(s.of_rank[rank], 256) || s.receive[rank] == nullptr || !aligned(s.receive[rank], 256)) return false;
  }
  return true;
}

template <typename T>
bool valid_parts(T *const (&parts)[INT8_CUDA_MAX_RANKS], int ranks, uintptr_t alignment) {
  for (int rank = 0; rank < ranks; ++rank) {
    if (parts[rank] == nullptr || !aligned(parts[rank], alignment)) return false;
  }
  return true;
}

// Whether outliers are found by column: only then do the other rows of a value's column matter.
bool has_mask(const int8_cuda_exchange_ranges_params &p) {
  return p.rule != INT8_CUDA_RULE_NONE && p.rows > 1 && p.outlier_granularity == INT8_CUDA_COLUMN &&
         p.row_maximum == INT8_CUDA_MAXIMUM_PAPER;
}

}  // namespace

extern "C" {

int8_cuda_status int8_cuda_exchange_sum(const int8_cuda_exchange_sum_params *p) {
  if (p == nullptr || !valid_sizes(p->rows, p->width, 0) || !valid_store(p->store) || !valid_signals(p->signals)) return INT8_CUDA_INVALID;
  if (p->rows == 0 || p->width == 0) return INT8_CUDA_OK;
  if (!valid_parts(p->parts, p->signals.ranks, 16) || p->out == nullptr || !aligned(p->out, 16)) return INT8_CUDA_INVALID;
  Device device;
  INT8_CUDA_PASS(current_device(&device));
  return device.major < 8 ? INT8_CUDA_UNSUPPORTED : launch_exchange_sum(*p, device);
}

int8_cuda_status int8_cuda_exchange_ranges_workspace(const int8_cuda_exchange_ranges_params *p, size_t *bytes) {
  if (p == nullptr || bytes == nullptr || !valid_sizes(p->rows, 0, p->k)) return INT8_CUDA_INVALID;
  *bytes = static_cast<size_t>(round_up<int64_t>((p->k + 31) / 32 * 4, 256));
  return INT8_CUDA_OK;
}

int8_cuda_status int8_cuda_exchange_ranges(const int8_cuda_exchange_ranges_params *p) {
  if (p == nullptr || !valid_sizes(p->rows, 0, p->k) || !valid_signals(p->signals) || p->element < INT8_CUDA_F16 || p->element > INT8_CUDA_F32 ||
      p->rule < INT8_CUDA_RULE_NONE || p->rule > INT8_CUDA_RULE_ABSOLUTE || (p->rule != INT8_CUDA_RULE_NONE && !(p->threshold > 0.0f))) {
    return INT8_CUDA_INVALID;
  }
  const int8_cuda_transform &f = p->transform;
  if (!valid_function(f) || p->input_element < INT8_CUDA_F16 || p->input_element > INT8_CUDA_F32) return INT8_CUDA_INVALID;
  if (p->rows == 0) return INT8_CUDA_OK;
  const bool gated = f.function == INT8_CUDA_GATED, norm = f.function == INT8_CUDA_RMS_NORM || f.function == INT8_CUDA_LAYER_NORM;
  if (p->input == nullptr || p->ldi < (gated ? 2 * p->k : p->k) || (norm && f.gain == nullptr)) return INT8_CUDA_INVALID;
  if (!valid_parts(p->ranges, p->signals.ranks, 8) || p->x == nullptr || p->ldx < p->k + INT8_CUDA_RANGE_COLUMNS) return INT8_CUDA_INVALID;
  size_t bytes = 0;
  INT8_CUDA_PASS(int8_cuda_exchange_ranges_workspace(p, &bytes));
  if (!valid_workspace(p->workspace, p->workspace_bytes, bytes)) return INT8_CUDA_WORKSPACE;
  Device device;
  INT8_CUDA_PASS(current_device(&device));
  if (device.major < 8) return INT8_CUDA_UNSUPPORTED;
  if (small_ranges_support(*p)) return launch_small_ranges(*p, has_mask(*p), device);
  const int8_cuda_transform_params transform{p->input, p->x, p->stream, p->rows, p->k, 1, p->ldi, p->ldx, p->input_element, p->element,
                                             INT8_CUDA_OVERWRITE, 0, f};
  INT8_CUDA_PASS(launch_transform(transform, device.major >= 9));
  uint32_t *mask = nullptr;
  if (has_mask(*p)) {
    PrologueParams rows{};
    rows.x = p->x;
    rows.m = p->rows;
    rows.k = p->k;
    rows.ldx = p->ldx;
    rows.element = p->element;
    rows.rule = p->rule;
    rows.threshold = p->threshold;
    rows.outliers.mask = mask = static_cast<uint32_t *>(p->workspace);
    const bool vector = p->element != INT8_CUDA_F32 && aligned(p->x, 16) && p->ldx % 8 == 0;
    INT8_CUDA_PASS(launch_outlier_mask(rows, vector, static_cast<cudaStream_t>(p->stream), device.major >= 9));
  }
  return launch_exchange_ranges(*p, mask, device);
}

int8_cuda_status int8_cuda_exchange_columns(const int8_cuda_exchange_columns_params *p) {
  if (p == nullptr || !valid_signals(p->signals) || p->rows < 0 || p->rows > kMaxSize) return INT8_CUDA_INVALID;
  if (p->rows == 0) return INT8_CUDA_OK;
  if (!valid_parts(p->parts, p->signals.ranks, 4) || (p->signals.rank == 0 && p->out == nullptr)) return INT8_CUDA_INVALID;
  Device device;
  INT8_CUDA_PASS(current_device(&device));
  return device.major < 8 ? INT8_CUDA_UNSUPPORTED : launch_exchange_columns(*p, device);
}

int8_cuda_status int8_cuda_slice(const int8_cuda_slice_params *p) {
  if (p == nullptr || p->n < 0 || p->first < 0 || p->count < 0 || p->zeros < 0 || p->n > kMaxSize) return INT8_CUDA_INVALID;
  if (p->n == 0) return INT8_CUDA_OK;
  const bool sizes = p->first + p->count <= p->ldq && p->count + p->zeros <= p->ldo && p->ldo % 16 == 0;
  if (!sizes || p->codes == nullptr || p->out == nullptr || p->code_sums == nullptr) return INT8_CUDA_INVALID;
  return launch_slice(*p);
}

}  // extern "C"
