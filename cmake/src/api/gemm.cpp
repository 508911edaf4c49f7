// int8_cuda_gemm: one weight on activations that int8_cuda_prologue made.
#include "api/stages.cuh"
#include "epilogue/gather_weights.cuh"

namespace int8_cuda {
namespace {

// The algorithm, resolved and checked.
int8_cuda_status resolve(const int8_cuda_gemm_params &p, const Device &device, int *algorithm) {
  const int8_cuda_activations &a = p.activations;
  const bool settings = a.element >= 0 && a.element <= INT8_CUDA_F32 && a.encoding >= 0 && a.encoding <= INT8_CUDA_ZEROPOINT &&
                        a.rule >= 0 && a.rule <= INT8_CUDA_RULE_MEAN;
  if (!valid_sizes(a.m, p.n, a.k) || !settings || !valid_store(p.store) || !valid_output(p.y_element, a.element)) return INT8_CUDA_INVALID;
  const GemmShape shape{a.m, p.n, a.k, a.element};
  *algorithm = choose_algorithm(p.algorithm, shape, false, device);
  return check_algorithm(*algorithm, shape, false, device);
}

// Whether W's outlier columns are needed compact.
bool gathers(const int8_cuda_gemm_params &p, int algorithm) { return is_form(algorithm) && p.activations.rule != INT8_CUDA_RULE_NONE; }

int8_cuda_status gemm(const int8_cuda_gemm_params &p) {
  const int8_cuda_activations &a = p.activations;
  Device device;
  INT8_CUDA_PASS(current_device(&device));
  int algorithm = 0;
  INT8_CUDA_PASS(resolve(p, device, &algorithm));
  if (a.m == 0 || p.n == 0) return INT8_CUDA_OK;
  const bool decompose = a.rule != INT8_CUDA_RULE_NONE;
  const bool codes = (a.k == 0 || a.codes != nullptr) && a.scales != nullptr && (a.encoding == INT8_CUDA_ABSMAX || a.zero_points != nullptr);
  const bool sums = p.weight_zero_points == nullptr || a.code_sums != nullptr;
  const bool outliers = !decompose || (a.outlier_count != nullptr && (a.k == 0 || (a.outlier_columns != nullptr && a.outlier_values != nullptr)));
  const bool leading = a.ldq == round_up<int64_t>(a.k, 16) && aligned(a.codes, 16) && (!decompose || aligned(a.outlier_values, 16));
  if (!codes || !sums || !outliers || !leading || !valid_weight(p, a.k, a.encoding)) return INT8_CUDA_INVALID;

  const cudaStream_t stream = static_cast<cudaStream_t>(p.stream);
  const bool overlap = device.major >= 9;
  GemmParams g = gemm_params(a, p);
  g.outlier_x_complete = decompose ? 1 : 0;
  g.outlier_ld = decompose ? round_up<int64_t>(a.k, 64) : 0;
  if (gathers(p, algorithm)) {
    // A workspace for a larger m may be smaller than this m's.
    const int64_t room = static_cast<int64_t>(p.workspace_bytes / (2 * static_cast<uint64_t>(p.n))) / 64 * 64;
    if (room < 64 || !valid_workspace(p.workspace, p.workspace_bytes, 1)) return INT8_CUDA_WORKSPACE;
    const int64_t wanted = outlier_capacity(a.m, p.n, a.k);
    g.outlier_ld = wanted < room ? wanted : room;
    g.outlier_w = p.workspace;
    const GatherParams gather{a.outlier_count, a.outlier_columns, g.weight, p.workspace, p.n, g.outlier_ld, g.weights_are_codes};
    INT8_CUDA_PASS(launch_gather_weights(gather, a.element, stream, overlap));
  }
  return launch_gemm(g, a.element, algorithm, stream, overlap);
}

}  // namespace
}  // namespace int8_cuda

using namespace int8_cuda;

extern "C" int8_cuda_status int8_cuda_gemm_workspace(const int8_cuda_gemm_params *p, int8_cuda_gemm_layout *layout) {
  if (p == nullptr || layout == nullptr) return INT8_CUDA_INVALID;
  Device device;
  INT8_CUDA_PASS(current_device(&device));
  *layout = int8_cuda_gemm_layout{};
  int algorithm = 0;
  INT8_CUDA_PASS(resolve(*p, device, &algorithm));
  const int8_cuda_activations &a = p->activations;
  layout->algorithm = algorithm;
  if (gathers(*p, algorithm)) layout->total = static_cast<uint64_t>(2 * p->n * outlier_capacity(a.m, p->n, a.k));
  return INT8_CUDA_OK;
}

extern "C" int8_cuda_status int8_cuda_gemm(const int8_cuda_gemm_params *p) {
  return p == nullptr ? INT8_CUDA_INVALID : gemm(*p);
}
