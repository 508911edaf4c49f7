// The entry points: arguments are checked, workspaces laid out, algorithms chosen, kernels put in order.
#include <cstring>

#include "dense.cuh"
#include "gemm.cuh"
#include "row_pass.cuh"
#include "rows.cuh"

namespace int8_cuda {

namespace {

thread_local char device_error[256] = "no error";

void remember(const char *name, const char *text) {
  std::strncpy(device_error, name, sizeof device_error - 1);
  const size_t used = std::strlen(device_error);
  std::strncpy(device_error + used, ": ", sizeof device_error - 1 - used);
  std::strncpy(device_error + std::strlen(device_error), text, sizeof device_error - 1 - std::strlen(device_error));
}

}  // namespace

int8_cuda_status device_status(cudaError_t error) {
  if (error == cudaSuccess) return INT8_CUDA_OK;
  cudaGetLastError();  // a launch error that has been reported must not surface again in someone else's call
  remember(cudaGetErrorName(error), cudaGetErrorString(error));
  return INT8_CUDA_DEVICE;
}

int8_cuda_status driver_status(int error) {
  if (error == 0) return INT8_CUDA_OK;
  remember("cuTensorMapEncodeTiled", "refused a tensor map");
  return INT8_CUDA_DEVICE;
}

int8_cuda_status current_device(Device *device) {
  // One slot a device, filled by whoever comes first; all write the same.
  constexpr int kDevices = 64;
  static Device known[kDevices];
  static int filled[kDevices];
  int index = 0;
  INT8_CUDA_TRY(cudaGetDevice(&index));
  if (index < kDevices && __atomic_load_n(&filled[index], __ATOMIC_ACQUIRE)) {
    *device = known[index];
    return INT8_CUDA_OK;
  }
  Device found{};
  INT8_CUDA_TRY(cudaDeviceGetAttribute(&found.major, cudaDevAttrComputeCapabilityMajor, index));
  INT8_CUDA_TRY(cudaDeviceGetAttribute(&found.minor, cudaDevAttrComputeCapabilityMinor, index));
  INT8_CUDA_TRY(cudaDeviceGetAttribute(&found.multiprocessors, cudaDevAttrMultiProcessorCount, index));
  if (index < kDevices) {
    known[index] = found;
    __atomic_store_n(&filled[index], 1, __ATOMIC_RELEASE);
  }
  *device = found;
  return INT8_CUDA_OK;
}

namespace {

constexpr int64_t kMaxInner = 133144;  // (2^31 - 1) / 127^2
constexpr int64_t kMaxSize = 1 << 30;
// The compacted outlier operands may take this much memory; beyond it outlier columns go the slower way.
constexpr int64_t kOutlierBytes = 256 << 20;

bool aligned(const void *pointer, uintptr_t to) { return reinterpret_cast<uintptr_t>(pointer) % to == 0; }

bool is_wgmma(int algorithm) {
  return (algorithm >= INT8_CUDA_WGMMA_128X256 && algorithm <= INT8_CUDA_WGMMA_64X128) || algorithm == INT8_CUDA_WGMMA_64X64 ||
         algorithm == INT8_CUDA_WGMMA_64X32;
}

bool valid_settings(int element, int encoding, int granularity, int rule, int outlier_granularity, int row_maximum,
                    float threshold) {
  const auto within = [](int value, int last) { return value >= 0 && value <= last; };
  return within(element, INT8_CUDA_F32) && within(encoding, INT8_CUDA_ZEROPOINT) &&
         within(granularity, INT8_CUDA_PER_TENSOR) && within(rule, INT8_CUDA_RULE_MEAN) &&
         within(outlier_granularity, INT8_CUDA_VALUE) && within(row_maximum, INT8_CUDA_MAXIMUM_BITSANDBYTES) &&
         (rule == INT8_CUDA_RULE_NONE || threshold > 0.0f);
}

struct Arena {
  uint64_t used = 0;
  uint64_t take(int64_t bytes) {
    const uint64_t at = used;
    used = round_up<uint64_t>(used + static_cast<uint64_t>(bytes), 256);
    return at;
  }
};

struct RowsLayout {
  uint64_t thresholds, ranges, mask;
};

RowsLayout lay_out_rows(Arena *arena, int64_t rows, int64_t inner, int granularity, int rule) {
  RowsLayout layout{};
  layout.thresholds = arena->take(rule > INT8_CUDA_RULE_ABSOLUTE ? rows * 4 : 0);
  layout.ranges = arena->take(granularity == INT8_CUDA_PER_TENSOR ? rows * 16 : 0);
  layout.mask = arena->take(rule != INT8_CUDA_RULE_NONE ? ceil_div<int64_t>(inner, 32) * 4 : 0);
  return layout;
}

// Which kernel serves a shape best: measured at the shapes of docs/benchmarks/gpu.md, and continued between them.
int choose(const int8_cuda_linear_params &p, const Device &device) {
  if (stream_takes(p.m, p.n, p.k, p.element, device)) return INT8_CUDA_STREAM;
  // One row: below 64 MB of weights a second launch costs more than every block quantising x for itself.
  if (p.m == 1 && p.element != INT8_CUDA_F32 && p.k <= kSkinnyOneInner && p.n * p.k <= 64 << 20) return INT8_CUDA_SKINNY_ONE;
  const bool wgmma = device.major == 9 && p.element != INT8_CUDA_F32 && p.k > 0;
  if (!wgmma) return p.m <= kSkinnyRows ? INT8_CUDA_SKINNY : INT8_CUDA_MMA;
  if (p.m <= 4 && p.k <= 8192) return INT8_CUDA_SKINNY;
  // As many multiprocessors as possible have a tile, but none has two: the smallest tiles with which that is so.
  const auto at_once = [&](int rows, int columns) {
    return ceil_div<int64_t>(p.m, rows) * ceil_div<int64_t>(p.n, columns) <= device.multiprocessors;
  };
  if (at_once(64, 32)) return INT8_CUDA_WGMMA_64X32;
  if (at_once(64, 64)) return INT8_CUDA_WGMMA_64X64;
  if (p.m <= 64 || at_once(64, 128)) return INT8_CUDA_WGMMA_64X128;
  // One cluster along M reads every weight once.
  const int64_t large = 2 * ceil_div<int64_t>(p.n, 256);
  if (p.m > 128 && p.m <= 256 && 3 * large >= 2 * device.multiprocessors) return INT8_CUDA_WGMMA_128X256;
  // Smaller tiles hide their epilogues and fetch more; that decides once the power limit is reached.
  return at_once(128, 128) || p.m * p.k < 4096 * 4096 ? INT8_CUDA_WGMMA_128X128 : INT8_CUDA_WGMMA_128X256;
}

struct LinearLayout {
  int8_cuda_linear_layout visible;
  RowsLayout rows;
  uint64_t state, outlier_x, outlier_w;
  int64_t capacity;  // columns of outlier_x and outlier_w; 0: none are made
};

int8_cuda_status lay_out(const int8_cuda_linear_params &p, const Device &device, LinearLayout *layout) {
  const bool sizes = p.m >= 0 && p.n >= 0 && p.k >= 0 && p.m <= kMaxSize && p.n <= kMaxSize && p.k <= kMaxInner;
  if (!sizes || !valid_settings(p.element, p.encoding, p.granularity, p.rule, p.outlier_granularity, p.row_maximum, p.threshold)) {
    return INT8_CUDA_INVALID;
  }
  *layout = LinearLayout{};
  int8_cuda_linear_layout &v = layout->visible;
  v.algorithm = p.algorithm == INT8_CUDA_AUTO ? choose(p, device) : p.algorithm;
  const bool stream = v.algorithm == INT8_CUDA_STREAM;
  const bool one = v.algorithm == INT8_CUDA_SKINNY_ONE || stream;
  const bool known = one || is_wgmma(v.algorithm) || v.algorithm == INT8_CUDA_SKINNY || v.algorithm == INT8_CUDA_MMA;
  if (!known) return INT8_CUDA_INVALID;
  if (stream && p.m > 0 && p.n > 0 && !stream_takes(p.m, p.n, p.k, p.element, device)) return INT8_CUDA_UNSUPPORTED;
  if (one && (p.m > 1 || p.element == INT8_CUDA_F32 || p.k > kSkinnyOneInner)) return INT8_CUDA_UNSUPPORTED;
  const bool wgmma = is_wgmma(v.algorithm);
  if (device.major < 8 || (wgmma && (device.major != 9 || p.element == INT8_CUDA_F32 || p.k == 0))) return INT8_CUDA_UNSUPPORTED;
  if (v.algorithm == INT8_CUDA_SKINNY && p.m > kSkinnyRows) return INT8_CUDA_UNSUPPORTED;
  Arena arena;
  // First, so that plans of all shapes may take turns with one workspace.
  layout->state = arena.take(kRowPassState);
  v.ldq = round_up<int64_t>(p.k, 16);
  v.codes = arena.take(p.m * v.ldq);
  v.scales = arena.take(p.m * 4);
  v.zero_points = arena.take(p.m * 4);
  v.code_sums = arena.take(p.m * 4);
  v.outlier_count = arena.take(4);
  v.outlier_columns = arena.take(p.k * 4);
  layout->rows = lay_out_rows(&arena, p.m, p.k, p.granularity, p.rule);
  if (p.rule != INT8_CUDA_RULE_NONE) {
    const int64_t all = round_up<int64_t>(p.k, 64), width = p.element == INT8_CUDA_F32 ? 4 : 2;
    if (wgmma) {
      const int64_t fitting = kOutlierBytes / (width * (p.m + p.n + 1)) / 64 * 64;
      layout->capacity = all < fitting ? all : fitting < 64 ? 64 : fitting;
      layout->outlier_w = arena.take(p.n * layout->capacity * width);
    } else if (one || v.algorithm == INT8_CUDA_SKINNY) {
      layout->capacity = all;
    }
    layout->outlier_x = arena.take(p.m * layout->capacity * width);
  }
  v.total = arena.used;
  return INT8_CUDA_OK;
}

template <typename T>
T *at(void *workspace, uint64_t offset) {
  return reinterpret_cast<T *>(static_cast<uint8_t *>(workspace) + offset);
}

int8_cuda_status linear(const int8_cuda_linear_params &p) {
  Device device;
  INT8_CUDA_PASS(current_device(&device));
  LinearLayout layout;
  INT8_CUDA_PASS(lay_out(p, device, &layout));
  if (p.m == 0 || p.n == 0) return INT8_CUDA_OK;
  const int8_cuda_linear_layout &v = layout.visible;
  const bool pointers = (p.k == 0 || (p.x != nullptr && p.weight != nullptr)) && p.weight_scales != nullptr && p.y != nullptr;
  const bool sums = p.encoding == INT8_CUDA_ABSMAX || p.weight_code_sums != nullptr;
  const bool leading = p.ldx >= p.k && p.ldw >= v.ldq && p.ldw % 16 == 0 && p.ldy >= p.n;
  if (!pointers || !sums || !leading || !aligned(p.weight, 16)) return INT8_CUDA_INVALID;
  if (p.workspace_bytes < v.total || p.workspace == nullptr || !aligned(p.workspace, 256)) return INT8_CUDA_WORKSPACE;

  const cudaStream_t stream = static_cast<cudaStream_t>(p.stream);
  const bool overlap = device.major >= 9;
  const bool decompose = p.rule != INT8_CUDA_RULE_NONE;
  const bool wgmma = is_wgmma(v.algorithm);
  const OutlierWeights weight{p.weight, p.weight_scales, p.weight_zero_points, p.exact, p.exact_index,
                              p.ldw, p.exact_stride_n, p.exact_stride_c};
  RowsParams rows{};
  rows.x = p.x;
  rows.codes = at<int8_t>(p.workspace, v.codes);
  rows.scales = at<float>(p.workspace, v.scales);
  rows.zero_points = at<int32_t>(p.workspace, v.zero_points);
  rows.code_sums = p.weight_zero_points != nullptr ? at<int32_t>(p.workspace, v.code_sums) : nullptr;
  rows.thresholds = at<float>(p.workspace, layout.rows.thresholds);
  rows.ranges = at<float4>(p.workspace, layout.rows.ranges);
  rows.outliers.mask = at<uint32_t>(p.workspace, layout.rows.mask);
  rows.outliers.count = at<uint32_t>(p.workspace, v.outlier_count);
  rows.outliers.columns = at<int32_t>(p.workspace, v.outlier_columns);
  rows.outliers.ld = layout.capacity;
  rows.outliers.x = layout.capacity > 0 ? at<void>(p.workspace, layout.outlier_x) : nullptr;
  rows.outliers.w = wgmma && decompose ? at<void>(p.workspace, layout.outlier_w) : nullptr;
  rows.weight = weight;
  rows.m = p.m;
  rows.n = p.n;
  rows.k = p.k;
  rows.ldx = p.ldx;
  rows.ldq = v.ldq;
  rows.element = p.element;
  rows.encoding = p.encoding;
  rows.granularity = p.granularity;
  rows.rule = p.rule;
  rows.outlier_granularity = p.outlier_granularity;
  rows.row_maximum = p.row_maximum;
  rows.threshold = p.threshold;
  rows.early = 1;
  rows.weights_are_codes = p.exact == nullptr ? 1 : 0;
  // SKINNY_ONE and STREAM read x 16 bytes at a time. Their workspace is SKINNY's, which takes over where AUTO was asked for.
  const bool wants_one = v.algorithm == INT8_CUDA_SKINNY_ONE || v.algorithm == INT8_CUDA_STREAM;
  const bool one = wants_one && aligned(p.x, 16);
  if (wants_one && !one && p.algorithm != INT8_CUDA_AUTO) return INT8_CUDA_INVALID;
  rows.state = wgmma ? at<uint32_t>(p.workspace, layout.state) : nullptr;
  const bool whole_pass = row_pass_takes(rows, device);
  INT8_CUDA_PASS(one          ? launch_thresholds(rows, stream, overlap)
                 : whole_pass ? launch_row_pass(rows, stream, device.multiprocessors)
                              : launch_rows(rows, stream, overlap));

  GemmParams g{};
  g.a = rows.codes;
  g.w = p.weight;
  g.row_scales = rows.scales;
  g.row_zeros = p.encoding == INT8_CUDA_ZEROPOINT ? rows.zero_points : nullptr;
  g.row_sums = rows.code_sums;
  g.column_scales = p.weight_scales;
  g.column_zeros = p.weight_zero_points;
  g.column_sums = p.weight_code_sums;
  g.bias = p.bias;
  g.y = p.y;
  g.lda = v.ldq;
  g.ldw = p.ldw;
  g.ldy = p.ldy;
  g.m = static_cast<int32_t>(p.m);
  g.n = static_cast<int32_t>(p.n);
  g.k = static_cast<int32_t>(p.k);
  if (decompose) {
    g.outlier_count = rows.outliers.count;
    g.outlier_columns = rows.outliers.columns;
    g.outlier_x = rows.outliers.x;
    g.outlier_w = rows.outliers.w;
  }
  g.outlier_ld = layout.capacity;
  g.weights_are_codes = rows.weights_are_codes;
  g.weight = weight;
  g.state = rows.state;
  g.state_words = whole_pass ? row_pass_state_words(p.k) : 0;
  g.x = p.x;
  g.ldx = p.ldx;
  g.thresholds = p.rule > INT8_CUDA_RULE_ABSOLUTE ? rows.thresholds : nullptr;
  g.threshold = p.threshold;
  g.by_value = p.outlier_granularity == INT8_CUDA_VALUE ? 1 : 0;
  if (one && v.algorithm == INT8_CUDA_STREAM) {
    return launch_stream(g, p.element, p.encoding == INT8_CUDA_ZEROPOINT, stream, device.multiprocessors);
  }
  if (one) return launch_skinny_one(g, p.element, p.encoding == INT8_CUDA_ZEROPOINT, stream, overlap);
  if (v.algorithm == INT8_CUDA_SKINNY || wants_one) return launch_skinny(g, p.element, stream, overlap);
  if (v.algorithm == INT8_CUDA_MMA) return launch_mma(g, p.element, stream, overlap);
  INT8_CUDA_PASS(launch_wgmma(g, p.element, v.algorithm, stream, overlap));
  if (decompose && layout.capacity < p.k) {
    g.only_beyond_capacity = 1;
    return launch_mma(g, p.element, stream, overlap);
  }
  return INT8_CUDA_OK;
}

}  // namespace
}  // namespace int8_cuda

using namespace int8_cuda;

extern "C" {

int32_t int8_cuda_abi(void) { return INT8_CUDA_ABI; }

const char *int8_cuda_status_text(int8_cuda_status status) {
  switch (status) {
    case INT8_CUDA_OK: return "done";
    case INT8_CUDA_INVALID: return "invalid argument";
    case INT8_CUDA_UNSUPPORTED: return "not supported on this device or by this algorithm";
    case INT8_CUDA_WORKSPACE: return "workspace missing, misaligned or too small";
    case INT8_CUDA_DEVICE: return "the device failed";
  }
  return "unknown status";
}

const char *int8_cuda_last_device_error(void) { return device_error; }

int8_cuda_status int8_cuda_get_device_info(int8_cuda_device_info *info) {
  if (info == nullptr) return INT8_CUDA_INVALID;
  *info = int8_cuda_device_info{};
  int index = 0;
  cudaDeviceProp properties;
  INT8_CUDA_TRY(cudaGetDevice(&index));
  INT8_CUDA_TRY(cudaGetDeviceProperties(&properties, index));
  INT8_CUDA_TRY(cudaDriverGetVersion(&info->driver_version));
  INT8_CUDA_TRY(cudaRuntimeGetVersion(&info->runtime_version));
  info->compute_major = properties.major;
  info->compute_minor = properties.minor;
  info->multiprocessors = properties.multiProcessorCount;
  info->has_wgmma = properties.major == 9 ? 1 : 0;
  info->has_cublaslt = cublaslt_found() ? 1 : 0;
  info->l2_bytes = static_cast<uint64_t>(properties.l2CacheSize);
  info->memory_bytes = properties.totalGlobalMem;
  std::memcpy(info->name, properties.name, sizeof info->name - 1);
  static_assert(sizeof info->name <= sizeof properties.name, "the name is copied whole");
  return INT8_CUDA_OK;
}

int8_cuda_status int8_cuda_quantize_workspace(const int8_cuda_quantize_params *p, size_t *bytes) {
  if (p == nullptr || bytes == nullptr || p->rows < 0 || p->inner < 0) return INT8_CUDA_INVALID;
  Arena arena;
  lay_out_rows(&arena, p->rows, p->inner, p->granularity, p->rule);
  *bytes = arena.used;
  return INT8_CUDA_OK;
}

int8_cuda_status int8_cuda_quantize(const int8_cuda_quantize_params *p) {
  if (p == nullptr || p->rows < 0 || p->inner < 0 || p->rows > kMaxSize || p->inner > kMaxInner ||
      !valid_settings(p->element, p->encoding, p->granularity, p->rule, p->outlier_granularity, p->row_maximum, p->threshold)) {
    return INT8_CUDA_INVALID;
  }
  if (p->rows == 0) return INT8_CUDA_OK;
  const bool pointers = (p->inner == 0 || (p->x != nullptr && p->codes != nullptr)) && p->scales != nullptr &&
                        (p->encoding == INT8_CUDA_ABSMAX || p->zero_points != nullptr);
  if (!pointers || p->ldx < p->inner || p->ldq < p->inner || p->ldq % 16 != 0 || !aligned(p->codes, 16)) return INT8_CUDA_INVALID;
  Arena arena;
  const RowsLayout layout = lay_out_rows(&arena, p->rows, p->inner, p->granularity, p->rule);
  if (arena.used > 0 && (p->workspace == nullptr || p->workspace_bytes < arena.used || !aligned(p->workspace, 256))) {
    return INT8_CUDA_WORKSPACE;
  }
  Device device;
  INT8_CUDA_PASS(current_device(&device));
  if (device.major < 8) return INT8_CUDA_UNSUPPORTED;
  RowsParams rows{};
  rows.x = p->x;
  rows.codes = p->codes;
  rows.scales = p->scales;
  rows.zero_points = p->zero_points;
  rows.code_sums = p->code_sums;
  rows.thresholds = at<float>(p->workspace, layout.thresholds);
  rows.ranges = at<float4>(p->workspace, layout.ranges);
  rows.outliers.mask = at<uint32_t>(p->workspace, layout.mask);
  rows.m = p->rows;
  rows.k = p->inner;
  rows.ldx = p->ldx;
  rows.ldq = p->ldq;
  rows.element = p->element;
  rows.encoding = p->encoding;
  rows.granularity = p->granularity;
  rows.rule = p->rule;
  rows.outlier_granularity = p->outlier_granularity;
  rows.row_maximum = p->row_maximum;
  rows.threshold = p->threshold;
  return launch_rows(rows, static_cast<cudaStream_t>(p->stream), device.major >= 9);
}

int8_cuda_status int8_cuda_linear_workspace(const int8_cuda_linear_params *p, int8_cuda_linear_layout *out) {
  if (p == nullptr || out == nullptr) return INT8_CUDA_INVALID;
  Device device;
  INT8_CUDA_PASS(current_device(&device));
  LinearLayout layout;
  INT8_CUDA_PASS(lay_out(*p, device, &layout));
  *out = layout.visible;
  return INT8_CUDA_OK;
}

int8_cuda_status int8_cuda_linear(const int8_cuda_linear_params *p) {
  return p == nullptr ? INT8_CUDA_INVALID : linear(*p);
}

int8_cuda_status int8_cuda_product(const int8_cuda_product_params *p) {
  if (p == nullptr || p->m < 0 || p->n < 0 || p->k < 0 || p->m > kMaxSize || p->n > kMaxSize || p->k > kMaxInner) return INT8_CUDA_INVALID;
  if (p->m == 0 || p->n == 0) return INT8_CUDA_OK;
  const int64_t inner = round_up<int64_t>(p->k, 16);
  if (p->out == nullptr || (p->k > 0 && (p->a == nullptr || p->w == nullptr)) || p->lda < inner || p->ldw < inner ||
      p->lda % 16 != 0 || p->ldw % 16 != 0 || p->ldo < p->n || !aligned(p->a, 16) || !aligned(p->w, 16)) {
    return INT8_CUDA_INVALID;
  }
  Device device;
  INT8_CUDA_PASS(current_device(&device));
  if (device.major < 8) return INT8_CUDA_UNSUPPORTED;
  if (p->algorithm == INT8_CUDA_CUBLASLT) return cublaslt_product(*p);
  if (p->algorithm != INT8_CUDA_AUTO && p->algorithm != INT8_CUDA_MMA) return INT8_CUDA_INVALID;
  GemmParams g{};
  g.a = p->a;
  g.w = p->w;
  g.y = p->out;
  g.lda = p->lda;
  g.ldw = p->ldw;
  g.ldy = p->ldo;
  g.m = static_cast<int32_t>(p->m);
  g.n = static_cast<int32_t>(p->n);
  g.k = static_cast<int32_t>(p->k);
  return launch_mma_i32(g, static_cast<cudaStream_t>(p->stream));
}

int8_cuda_status int8_cuda_dequantize(const int8_cuda_dequantize_params *p) {
  if (p == nullptr || p->rows < 0 || p->inner < 0 || p->inner > kMaxSize || p->rows > kMaxSize) return INT8_CUDA_INVALID;
  if (p->rows == 0 || p->inner == 0) return INT8_CUDA_OK;
  if (p->codes == nullptr || p->scales == nullptr || p->values == nullptr || p->ldq < p->inner || p->ldv < p->inner) return INT8_CUDA_INVALID;
  return launch_dequantize(*p);
}

int8_cuda_status int8_cuda_gradient(const int8_cuda_gradient_params *p) {
  if (p == nullptr || p->m < 0 || p->n < 0 || p->k < 0 || p->m > kMaxSize || p->n > kMaxSize || p->k > kMaxSize) return INT8_CUDA_INVALID;
  if (p->m == 0 || p->k == 0) return INT8_CUDA_OK;
  const bool operands = p->n == 0 || (p->dy != nullptr && p->weight != nullptr && p->weight_scales != nullptr);
  if (!operands || p->dx == nullptr || p->lddy < p->n || p->ldw < p->k || p->lddx < p->k) return INT8_CUDA_INVALID;
  return launch_gradient(*p);
}

int8_cuda_status int8_cuda_dense_candidates(const int8_cuda_dense_params *p, int32_t *count) {
  if (p == nullptr || count == nullptr) return INT8_CUDA_INVALID;
  *count = 0;
  return cublaslt_found() ? cublaslt_dense(*p, count) : INT8_CUDA_OK;
}

int8_cuda_status int8_cuda_dense(const int8_cuda_dense_params *p) {
  if (p == nullptr || p->m <= 0 || p->n <= 0 || p->k <= 0 || p->x == nullptr || p->w == nullptr || p->y == nullptr) return INT8_CUDA_INVALID;
  if (p->element != INT8_CUDA_F16 && p->element != INT8_CUDA_BF16) return INT8_CUDA_UNSUPPORTED;
  return cublaslt_dense(*p, nullptr);
}

}  // extern "C"
