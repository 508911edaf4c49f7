// int8_cuda_linear: the three stages for one weight. Where a GEMM wants W's outlier columns compact, the prologue's kernels
// gather them; M = 1 is one kernel.
#include "api/stages.cuh"
#include "prologue/single_pass.cuh"
#include "prologue/transform.cuh"

namespace int8_cuda {
namespace {

// The activations that lie in the workspace.
int8_cuda_activations activations_in(const int8_cuda_linear_params &p, const LinearLayout &layout) {
  const int8_cuda_linear_layout &v = layout.visible;
  int8_cuda_activations a{};
  a.codes = at<int8_t>(p.workspace, v.codes);
  a.scales = at<float>(p.workspace, v.scales);
  a.zero_points = at<int32_t>(p.workspace, v.zero_points);
  a.code_sums = p.weight_zero_points != nullptr ? at<int32_t>(p.workspace, v.code_sums) : nullptr;
  a.outlier_count = at<uint32_t>(p.workspace, v.outlier_count);
  a.outlier_columns = at<int32_t>(p.workspace, v.outlier_columns);
  a.outlier_values = layout.capacity > 0 ? at<void>(p.workspace, layout.outlier_x) : nullptr;
  a.m = p.m;
  a.k = p.k;
  a.ldq = v.ldq;
  a.element = p.element;
  a.encoding = p.encoding;
  a.rule = p.rule;
  return a;
}

int8_cuda_status linear(const int8_cuda_linear_params &p) {
  Device device;
  INT8_CUDA_PASS(current_device(&device));
  LinearLayout layout;
  INT8_CUDA_PASS(lay_out_linear(p, device, &layout));
  if (p.m == 0 || p.n == 0) return INT8_CUDA_OK;
  const bool gated = p.transform.function == INT8_CUDA_GATED;
  const bool norm = p.transform.function == INT8_CUDA_RMS_NORM || p.transform.function == INT8_CUDA_LAYER_NORM;
  if ((p.k > 0 && p.x == nullptr) || p.ldx < (gated ? 2 * p.k : p.k) || (norm && p.transform.gain == nullptr) || !valid_weight(p, p.k, p.encoding)) return INT8_CUDA_INVALID;
  if (!valid_workspace(p.workspace, p.workspace_bytes, layout.visible.total)) return INT8_CUDA_WORKSPACE;

  const cudaStream_t stream = static_cast<cudaStream_t>(p.stream);
  const bool overlap = device.major >= 9, decompose = p.rule != INT8_CUDA_RULE_NONE;
  int algorithm = layout.visible.algorithm;
  // The GEMV forms read x 16 bytes at a time. SMALL_M, which has the same workspace, replaces them where AUTO chose.
  if (is_gemv(algorithm) && !aligned(p.x, 16)) {
    if (p.algorithm != INT8_CUDA_AUTO) return INT8_CUDA_INVALID;
    algorithm = INT8_CUDA_SMALL_M;
  }
  // GEMV_TMA computes most functions of its row itself; for the others a kernel comes before.
  const void *x = p.x;
  int64_t ldx = p.ldx;
  const bool inside = algorithm == INT8_CUDA_GEMV_TMA && p.rule <= INT8_CUDA_RULE_ABSOLUTE &&
                      gemv_tma_transforms(p.transform, p.k, p.x_element, p.element);
  if (transforms(p) && !inside && p.k > 0) {
    const int8_cuda_transform_params f{p.x, at<void>(p.workspace, layout.input), p.stream, p.m, p.k, 1, p.ldx, p.k,
                                       p.x_element, p.element, INT8_CUDA_OVERWRITE, 0, p.transform};
    INT8_CUDA_PASS(launch_transform(f, overlap));
    x = f.y;
    ldx = p.k;
  }

  const int8_cuda_activations a = activations_in(p, layout);
  PrologueParams rows = prologue_params(a, settings_of(p), x, ldx);
  rows.thresholds = at<float>(p.workspace, layout.rows.thresholds);
  rows.ranges = at<float4>(p.workspace, layout.rows.ranges);
  rows.outliers.mask = at<uint32_t>(p.workspace, layout.rows.mask);
  rows.outliers.ld = layout.capacity;
  rows.outliers.w = is_form(algorithm) && decompose ? at<void>(p.workspace, layout.outlier_w) : nullptr;
  rows.weight = weight_of(p);
  rows.n = p.n;
  rows.weights_are_codes = p.exact == nullptr ? 1 : 0;
  rows.counters = kind_of(algorithm) == Kind::WGMMA ? at<uint32_t>(p.workspace, layout.counters) : nullptr;

  GemmParams g = gemm_params(a, p);
  g.outlier_w = rows.outliers.w;
  g.outlier_ld = layout.capacity;
  g.x = x;
  g.ldx = ldx;
  if (inside) {
    g.transform = p.transform;
    g.x_is_f32 = p.x_element == INT8_CUDA_F32 && p.element != INT8_CUDA_F32 ? 1 : 0;
  }
  g.thresholds = p.rule > INT8_CUDA_RULE_ABSOLUTE ? rows.thresholds : nullptr;
  g.threshold = p.threshold;
  g.by_value = p.outlier_granularity == INT8_CUDA_VALUE ? 1 : 0;
  if (is_gemv(algorithm)) {
    const bool zero_point = p.encoding == INT8_CUDA_ZEROPOINT;
    INT8_CUDA_PASS(launch_thresholds(rows, stream, overlap));
    return algorithm == INT8_CUDA_GEMV_TMA ? launch_gemv_tma(g, p.element, zero_point, stream, device.multiprocessors)
                                           : launch_gemv(g, p.element, zero_point, stream, overlap);
  }
  bool single_pass = false;
  INT8_CUDA_PASS(launch_prologue(rows, device, stream, &single_pass));
  g.counters = rows.counters;
  g.counter_words = single_pass ? single_pass_counter_words(p.k) : 0;
  return launch_gemm(g, p.element, algorithm, stream, overlap);
}

}  // namespace
}  // namespace int8_cuda

using namespace int8_cuda;

extern "C" int8_cuda_status int8_cuda_linear_workspace(const int8_cuda_linear_params *p, int8_cuda_linear_layout *out) {
  if (p == nullptr || out == nullptr) return INT8_CUDA_INVALID;
  Device device;
  INT8_CUDA_PASS(current_device(&device));
  LinearLayout layout;
  INT8_CUDA_PASS(lay_out_linear(*p, device, &layout));
  *out = layout.visible;
  return INT8_CUDA_OK;
}

extern "C" int8_cuda_status int8_cuda_linear(const int8_cuda_linear_params *p) {
  return p == nullptr ? INT8_CUDA_INVALID : linear(*p);
}
