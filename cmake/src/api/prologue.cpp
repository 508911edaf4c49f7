// int8_cuda_prologue: x as int8_cuda_activations. int8_cuda_quantize: rows as codes, mostly those of a weight.
#include "api/stages.cuh"
#include "prologue/single_pass.cuh"

namespace int8_cuda {
namespace {

struct PrologueLayout {
  uint64_t counters, total;
  RowsLayout rows;
};

PrologueLayout lay_out(const int8_cuda_prologue_params &p) {
  Arena arena;
  PrologueLayout layout{};
  layout.counters = arena.take(kSinglePassCounterBytes);
  layout.rows = lay_out_rows(&arena, p.activations.m, p.activations.k, p.granularity, p.activations.rule);
  layout.total = arena.used;
  return layout;
}

Settings settings_of_prologue(const int8_cuda_prologue_params &p) {
  const int8_cuda_activations &a = p.activations;
  return {a.element, a.encoding, p.granularity, a.rule, p.outlier_granularity, p.row_maximum, p.threshold};
}

bool valid_prologue(const int8_cuda_prologue_params &p) {
  return valid_sizes(p.activations.m, 0, p.activations.k) && valid_settings(settings_of_prologue(p));
}

int8_cuda_status prologue(const int8_cuda_prologue_params &p) {
  const int8_cuda_activations &a = p.activations;
  if (!valid_prologue(p)) return INT8_CUDA_INVALID;
  if (a.m == 0) return INT8_CUDA_OK;
  const bool decompose = a.rule != INT8_CUDA_RULE_NONE;
  const bool outliers = !decompose || (a.outlier_count != nullptr && (a.k == 0 || (a.outlier_columns != nullptr && a.outlier_values != nullptr)));
  const bool pointers = (a.k == 0 || (p.x != nullptr && a.codes != nullptr)) && a.scales != nullptr &&
                        (a.encoding == INT8_CUDA_ABSMAX || a.zero_points != nullptr);
  const bool alignment = aligned(a.codes, 16) && (!decompose || aligned(a.outlier_values, 16));
  if (!pointers || !outliers || !alignment || p.ldx < a.k || a.ldq != round_up<int64_t>(a.k, 16)) return INT8_CUDA_INVALID;
  const PrologueLayout layout = lay_out(p);
  if (!valid_workspace(p.workspace, p.workspace_bytes, layout.total)) return INT8_CUDA_WORKSPACE;
  Device device;
  INT8_CUDA_PASS(current_device(&device));
  if (device.major < 8) return INT8_CUDA_UNSUPPORTED;

  PrologueParams rows = prologue_params(a, settings_of_prologue(p), p.x, p.ldx);
  rows.thresholds = at<float>(p.workspace, layout.rows.thresholds);
  rows.ranges = at<float4>(p.workspace, layout.rows.ranges);
  rows.outliers.mask = at<uint32_t>(p.workspace, layout.rows.mask);
  rows.outliers.ld = round_up<int64_t>(a.k, 64);
  // Few rows: one kernel without a grid barrier.
  rows.counters = a.m > kFewRows ? at<uint32_t>(p.workspace, layout.counters) : nullptr;
  rows.resets_counters = 1;
  bool single_pass = false;
  return launch_prologue(rows, device, static_cast<cudaStream_t>(p.stream), &single_pass);
}

int8_cuda_status quantize(const int8_cuda_quantize_params &p) {
  if (!valid_sizes(p.rows, 0, p.inner) || !valid_settings(settings_of(p))) return INT8_CUDA_INVALID;
  if (p.rows == 0) return INT8_CUDA_OK;
  const bool pointers = (p.inner == 0 || (p.x != nullptr && p.codes != nullptr)) && p.scales != nullptr &&
                        (p.encoding == INT8_CUDA_ABSMAX || p.zero_points != nullptr);
  if (!pointers || p.ldx < p.inner || p.ldq < p.inner || p.ldq % 16 != 0 || !aligned(p.codes, 16)) return INT8_CUDA_INVALID;
  Arena arena;
  const RowsLayout layout = lay_out_rows(&arena, p.rows, p.inner, p.granularity, p.rule);
  if (!valid_workspace(p.workspace, p.workspace_bytes, arena.used)) return INT8_CUDA_WORKSPACE;
  Device device;
  INT8_CUDA_PASS(current_device(&device));
  if (device.major < 8) return INT8_CUDA_UNSUPPORTED;
  PrologueParams rows{};
  rows.x = p.x;
  rows.codes = p.codes;
  rows.scales = p.scales;
  rows.zero_points = p.zero_points;
  rows.code_sums = p.code_sums;
  rows.thresholds = at<float>(p.workspace, layout.thresholds);
  rows.ranges = at<float4>(p.workspace, layout.ranges);
  rows.outliers.mask = at<uint32_t>(p.workspace, layout.mask);
  rows.m = p.rows;
  rows.k = p.inner;
  rows.ldx = p.ldx;
  rows.ldq = p.ldq;
  rows.element = p.element;
  rows.encoding = p.encoding;
  rows.granularity = p.granularity;
  rows.rule = p.rule;
  rows.outlier_granularity = p.outlier_granularity;
  rows.row_maximum = p.row_maximum;
  rows.threshold = p.threshold;
  return launch_quantize_rows(rows, static_cast<cudaStream_t>(p.stream), device.major >= 9);
}

}  // namespace
}  // namespace int8_cuda

using namespace int8_cuda;

extern "C" int8_cuda_status int8_cuda_prologue_workspace(const int8_cuda_prologue_params *p, size_t *bytes) {
  if (p == nullptr || bytes == nullptr || !valid_prologue(*p)) return INT8_CUDA_INVALID;
  *bytes = lay_out(*p).total;
  return INT8_CUDA_OK;
}

extern "C" int8_cuda_status int8_cuda_prologue(const int8_cuda_prologue_params *p) {
  return p == nullptr ? INT8_CUDA_INVALID : prologue(*p);
}

extern "C" int8_cuda_status int8_cuda_quantize_workspace(const int8_cuda_quantize_params *p, size_t *bytes) {
  if (p == nullptr || bytes == nullptr || p->rows < 0 || p->inner < 0) return INT8_CUDA_INVALID;
  Arena arena;
  lay_out_rows(&arena, p->rows, p->inner, p->granularity, p->rule);
  *bytes = arena.used;
  return INT8_CUDA_OK;
}

extern "C" int8_cuda_status int8_cuda_quantize(const int8_cuda_quantize_params *p) {
  return p == nullptr ? INT8_CUDA_INVALID : quantize(*p);
}
