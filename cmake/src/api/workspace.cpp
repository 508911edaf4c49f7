// The layouts of the workspaces.
#include "api/workspace.cuh"

#include "api/validation.cuh"
#include "gemm/gemm.cuh"
#include "prologue/single_pass.cuh"

namespace int8_cuda {
namespace {

// Bytes of the compact outlier operands of x and W together, at most.
constexpr int64_t kOutlierBytes = 256 << 20;

}  // namespace

RowsLayout lay_out_rows(Arena *arena, int64_t rows, int64_t inner, int granularity, int rule) {
  RowsLayout layout{};
  layout.thresholds = arena->take(rule > INT8_CUDA_RULE_ABSOLUTE ? rows * 4 : 0);
  layout.ranges = arena->take(granularity == INT8_CUDA_PER_TENSOR ? rows * 16 : 0);
  layout.mask = arena->take(rule != INT8_CUDA_RULE_NONE ? ceil_div<int64_t>(inner, 32) * 4 : 0);
  return layout;
}

int64_t outlier_capacity(int64_t m, int64_t n, int64_t k) {
  const int64_t all = round_up<int64_t>(k, 64), fitting = kOutlierBytes / (2 * (m + n + 1)) / 64 * 64;
  return all < fitting ? all : fitting < 64 ? 64 : fitting;
}

int8_cuda_status lay_out_linear(const int8_cuda_linear_params &p, const Device &device, LinearLayout *layout) {
  if (!valid_sizes(p.m, p.n, p.k) || !valid_settings(settings_of(p)) || !valid_store(p.store) || !valid_output(p.y_element, p.element) ||
      !valid_output(p.x_element, p.element) || !valid_function(p.transform)) {
    return INT8_CUDA_INVALID;
  }
  const GemmShape shape{p.m, p.n, p.k, p.element};
  *layout = LinearLayout{};
  int8_cuda_linear_layout &v = layout->visible;
  v.algorithm = choose_algorithm(p.algorithm, shape, true, device);
  INT8_CUDA_PASS(check_algorithm(v.algorithm, shape, true, device));
  Arena arena;
  // First, so that calls of all shapes may share one workspace.
  layout->counters = arena.take(kSinglePassCounterBytes);
  v.ldq = round_up<int64_t>(p.k, 16);
  v.codes = arena.take(p.m * v.ldq);
  v.scales = arena.take(p.m * 4);
  v.zero_points = arena.take(p.m * 4);
  v.code_sums = arena.take(p.m * 4);
  v.outlier_count = arena.take(4);
  v.outlier_columns = arena.take(p.k * 4);
  layout->rows = lay_out_rows(&arena, p.m, p.k, p.granularity, p.rule);
  if (p.rule != INT8_CUDA_RULE_NONE) {
    const int64_t width = element_bytes(p.element);
    if (is_form(v.algorithm)) {
      layout->capacity = outlier_capacity(p.m, p.n, p.k);
      layout->outlier_w = arena.take(p.n * layout->capacity * width);
    } else if (is_gemv(v.algorithm) || v.algorithm == INT8_CUDA_SMALL_M) {
      layout->capacity = round_up<int64_t>(p.k, 64);
    }
    layout->outlier_x = arena.take(p.m * layout->capacity * width);
  }
  layout->input = arena.take(transforms(p) ? p.m * p.k * element_bytes(p.element) : 0);
  v.total = arena.used;
  return INT8_CUDA_OK;
}

}  // namespace int8_cuda
