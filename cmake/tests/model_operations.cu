// Transforms, gathers, floating-point products and sampling against double-precision host references, and their times.
// Prints every failure and exits with 1 if there is one. Argument "quick": fewer tests and no times, for a
// sanitizer; "linear": the times of products alone.
#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "common/types.cuh"
#include "gemm/float_linear.cuh"
#include "gemm/gemm.cuh"
#include "int8_cuda_model.h"

namespace {

int failures = 0;
long checks = 0;
void fail(const char *format, ...) {
  if (++failures > 60) return;
  va_list arguments;
  va_start(arguments, format);
  std::printf("FAILED ");
  std::vprintf(format, arguments);
  std::printf("\n");
  va_end(arguments);
}
void must(cudaError_t error, const char *what) {
  if (error == cudaSuccess) return;
  std::printf("FAILED %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
#define MUST(e) must((e), #e)
void ok(int8_cuda_status status, const char *what) {
  if (status != INT8_CUDA_OK) fail("%s: status %d", what, status);
}

struct Random {
  uint64_t state;
  uint64_t bits() {
    state += 0x9E3779B97F4A7C15ull;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(bits() >> 11) / 9007199254740992.0; }
  float normal() {
    float sum = 0;
    for (int i = 0; i < 4; ++i) sum += static_cast<float>(uniform());
    return (sum - 2.0f) * 1.7320508f;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  template <typename T>
  T choose(std::initializer_list<T> values) { return values.begin()[below(static_cast<int64_t>(values.size()))]; }
};

template <typename T>
struct Buffer {
  T *data = nullptr;
  size_t count;
  explicit Buffer(size_t n) : count(n) { MUST(cudaMalloc(&data, std::max<size_t>(n, 1) * sizeof(T))); }
  explicit Buffer(const std::vector<T> &from) : Buffer(from.size()) { set(from); }
  Buffer(const Buffer &) = delete;
  ~Buffer() { cudaFree(data); }
  void set(const std::vector<T> &from) { MUST(cudaMemcpy(data, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice)); }
  std::vector<T> get() const {
    std::vector<T> to(count);
    MUST(cudaDeviceSynchronize());
    MUST(cudaMemcpy(to.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost));
    return to;
  }
};

// Values of an element type as bytes, on the host.
struct Values {
  int element;
  std::vector<uint8_t> bytes;
  static size_t size_of(int element) { return element == INT8_CUDA_F32 ? 4 : 2; }
  Values(int e, size_t n) : element(e), bytes(n * size_of(e)) {}
  size_t count() const { return bytes.size() / size_of(element); }
  void set(size_t i, float v) {
    if (element == INT8_CUDA_F16) reinterpret_cast<__half *>(bytes.data())[i] = __float2half_rn(v);
    if (element == INT8_CUDA_BF16) reinterpret_cast<__nv_bfloat16 *>(bytes.data())[i] = __float2bfloat16_rn(v);
    if (element == INT8_CUDA_F32) reinterpret_cast<float *>(bytes.data())[i] = v;
  }
  float get(size_t i) const {
    if (element == INT8_CUDA_F16) return __half2float(reinterpret_cast<const __half *>(bytes.data())[i]);
    if (element == INT8_CUDA_BF16) return __bfloat162float(reinterpret_cast<const __nv_bfloat16 *>(bytes.data())[i]);
    return reinterpret_cast<const float *>(bytes.data())[i];
  }
};
Values random_values(Random &random, int element, size_t n, float scale = 1.0f) {
  Values v(element, n);
  for (size_t i = 0; i < n; ++i) v.set(i, random.normal() * scale);
  return v;
}
double unit_of(int element) { return element == INT8_CUDA_F16 ? 0x1p-11 : element == INT8_CUDA_BF16 ? 0x1p-8 : 0x1p-24; }
double least_of(int element) { return element == INT8_CUDA_F16 ? 0x1p-25 : 0x1p-126; }

// |got - expected| <= the type's rounding + slack; NaN and infinities are equal to themselves.
bool close(double got, double expected, int element, double slack) {
  ++checks;
  if (std::isnan(expected) || std::isnan(got)) return std::isnan(expected) && std::isnan(got);
  const double largest = element == INT8_CUDA_F16 ? 65504.0 : 3.4e38;
  if (std::abs(expected) > largest) return std::isinf(got) && (got > 0) == (expected > 0);
  return std::abs(got - expected) <= unit_of(element) * std::abs(expected) * 1.001 + least_of(element) + slack;
}

double activate(double x, int activation) {
  switch (activation) {
    case INT8_CUDA_RELU: return x < 0 ? 0 : x;
    case INT8_CUDA_GELU: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case INT8_CUDA_GELU_TANH: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    default: return x / (1 + std::exp(-x));
  }
}

void test_transform(Random &random, int function, int activation, int64_t k, int tx, int ty) {
  const bool gated = function == INT8_CUDA_GATED, norm = function == INT8_CUDA_RMS_NORM || function == INT8_CUDA_LAYER_NORM;
  const int64_t rows = random.choose<int64_t>({1, 2, 5}), groups = gated || k > 2000 ? 1 : random.choose<int64_t>({1, 2, 5});
  const int64_t width = groups * k, xwidth = gated ? 2 * width : width;
  const int64_t pad = random.choose<int64_t>({0, 0, 3, 8});
  const bool in_place = !gated && tx == ty && random.below(3) == 0, special = random.below(8) == 0;
  const int64_t ldx = xwidth + pad, ldy = in_place ? ldx : width + random.choose<int64_t>({0, 5, 16});
  const int store = random.below(2) ? INT8_CUDA_ACCUMULATE : INT8_CUDA_OVERWRITE;
  Values x = random_values(random, tx, rows * ldx, random.choose({0.5f, 3.0f}));
  if (norm && random.below(2)) {
    for (size_t i = 0; i < x.count(); ++i) x.set(i, x.get(i) + 7.0f);  // a mean much larger than the deviation
  }
  if (special) {
    x.set(random.below(width), random.choose({INFINITY, -INFINITY, NAN}));
    x.set((rows - 1) * ldx + random.below(width), random.choose({INFINITY, -INFINITY, NAN}));
  }
  Values y = in_place ? x : random_values(random, ty, rows * ldy);
  std::vector<float> gain(k), bias(k);
  for (auto &v : gain) v = 1 + 0.2f * random.normal();
  for (auto &v : bias) v = random.normal();
  Buffer<uint8_t> dx(x.bytes), dy(y.bytes);
  Buffer<float> dgain(gain), dbias(bias);
  const bool has_bias = random.below(3) != 0;
  int8_cuda_transform_params p{};
  p.x = in_place ? dy.data : dx.data;
  p.y = dy.data;
  p.rows = rows, p.k = k, p.groups = groups, p.ldx = ldx, p.ldy = ldy, p.x_element = tx, p.y_element = ty, p.store = store;
  p.transform.gain = dgain.data, p.transform.bias = has_bias ? dbias.data : nullptr;
  p.transform.function = function, p.transform.activation = activation, p.transform.eps = 1e-5f;
  p.transform.factor = 0.37f, p.transform.cap = random.below(2) ? 1.5f : 0.0f;
  ok(int8_cuda_apply_transform(&p), "transform");
  Values got(ty, y.count());
  got.bytes = dy.get();
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = width; c < ldy; ++c) {
      if (std::memcmp(&got.bytes[(r * ldy + c) * Values::size_of(ty)], &y.bytes[(r * ldy + c) * Values::size_of(ty)], Values::size_of(ty)) != 0) {
        return fail("transform %d k %ld: column %ld of the padding was written", function, k, c);
      }
    }
    for (int64_t g = 0; g < groups; ++g) {
      double mean = 0, squares = 0;
      auto at = [&](int64_t i) { return static_cast<double>(x.get(r * ldx + g * k + i)); };
      if (function == INT8_CUDA_LAYER_NORM) {
        for (int64_t i = 0; i < k; ++i) mean += at(i) / static_cast<double>(k);
      }
      for (int64_t i = 0; i < k && norm; ++i) squares += (at(i) - mean) * (at(i) - mean) / static_cast<double>(k);
      const double root = 1 / std::sqrt(squares + static_cast<double>(p.transform.eps));
      for (int64_t i = 0; i < k; ++i) {
        double f = at(i), magnitude = std::abs(f);
        switch (function) {
          case INT8_CUDA_RMS_NORM: f = f * root * gain[i]; break;
          case INT8_CUDA_LAYER_NORM:
            magnitude = (magnitude + std::abs(mean)) * root + std::abs(bias[i]);
            f = (f - mean) * root * gain[i] + (has_bias ? bias[i] : 0);
            break;
          case INT8_CUDA_ACTIVATION: f = activate(f, activation); break;
          case INT8_CUDA_GATED: {
            const double up = x.get(r * ldx + k + i);
            magnitude *= std::abs(up);
            f = activate(f, activation) * up;
            break;
          }
          case INT8_CUDA_SCALE:
            f *= static_cast<double>(p.transform.factor);
            if (p.transform.cap > 0) f = p.transform.cap * std::tanh(f / p.transform.cap);
            break;
          default: break;
        }
        const int64_t index = r * ldy + g * k + i;
        const double before = store == INT8_CUDA_ACCUMULATE ? y.get(index) : 0;
        const double slack = std::isfinite(f) ? 1.5e-6 * (std::abs(f) + magnitude + std::abs(before)) : 0;
        if (!close(got.get(index), f + before, ty, slack)) {
          return fail("transform %d act %d rows %ld groups %ld k %ld x %d y %d store %d in place %d special %d: row %ld column %ld is %g, not %g", function,
                      activation, rows, groups, k, tx, ty, store, in_place, special, r, g * k + i, got.get(index), f + before);
        }
      }
    }
  }
}

void test_gather(Random &random, int64_t width, int te, int se) {
  const int64_t rows = random.choose<int64_t>({1, 3, 40}), entries = 50;
  Values table = random_values(random, te, entries * width), second = random_values(random, se, entries * width);
  std::vector<int32_t> index(rows), second_index(rows);
  for (auto &i : index) i = static_cast<int32_t>(random.below(entries - 2));
  for (auto &i : second_index) i = static_cast<int32_t>(random.below(entries)) - 3;
  for (auto &i : second_index) i = std::max(i, -2);
  std::vector<float> out(rows * width);
  for (auto &v : out) v = random.normal();
  Buffer<uint8_t> dtable(table.bytes), dsecond(second.bytes);
  Buffer<int32_t> dindex(index), dsecond_index(second_index);
  Buffer<float> dout(out);
  const int which = static_cast<int>(random.below(3));  // both, table, second
  int8_cuda_gather_params p{};
  p.table = which == 2 ? nullptr : dtable.data, p.second = which == 1 ? nullptr : dsecond.data;
  p.index = dindex.data, p.second_index = dsecond_index.data, p.out = dout.data;
  p.rows = rows, p.width = width, p.offset = 1, p.second_offset = 2, p.element = te, p.second_element = se;
  p.store = random.below(2) ? INT8_CUDA_ACCUMULATE : INT8_CUDA_OVERWRITE;
  ok(int8_cuda_gather(&p), "gather");
  const auto got = dout.get();
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < width; ++c) {
      float expected = 0;
      if (p.table != nullptr) expected = table.get((index[r] + 1) * width + c);
      if (p.second != nullptr) expected += second.get((second_index[r] + 2) * width + c);
      if (p.store == INT8_CUDA_ACCUMULATE) expected += out[r * width + c];
      ++checks;
      if (got[r * width + c] != expected) return fail("gather width %ld row %ld column %ld: %g, not %g", width, r, c, got[r * width + c], expected);
    }
  }
}

void test_linear(Random &random, int element, int y_element, int64_t m, int64_t n, int64_t k, Buffer<uint8_t> &workspace) {
  const int64_t ldx = k + random.choose<int64_t>({0, 0, 1, 8}), ldy = n + random.choose<int64_t>({0, 1, 8});
  const bool has_bias = random.below(2), accumulate = random.below(2);
  const size_t offset = random.below(4) == 0 ? 1 : 0;  // elements by which x is not aligned
  Values x = random_values(random, element, m * ldx + offset), w = random_values(random, element, n * k, 0.2f), y = random_values(random, y_element, m * ldy);
  std::vector<float> bias(n), xf(m * k), wf(n * k);
  for (auto &v : bias) v = __half2float(__float2half_rn(random.normal()));
  for (int64_t r = 0; r < m; ++r) for (int64_t i = 0; i < k; ++i) xf[r * k + i] = x.get(offset + r * ldx + i);
  for (int64_t i = 0; i < n * k; ++i) wf[i] = w.get(i);
  Buffer<uint8_t> dx(x.bytes), dw(w.bytes), dy(y.bytes);
  Buffer<float> dbias(bias);
  int8_cuda_float_linear_params p{};
  p.x = dx.data + offset * Values::size_of(element), p.w = dw.data, p.y = dy.data, p.bias = has_bias ? dbias.data : nullptr;
  p.workspace = workspace.data, p.workspace_bytes = random.below(5) == 0 ? 0 : workspace.count;
  p.m = m, p.n = n, p.k = k, p.ldx = ldx, p.ldy = ldy, p.element = element, p.y_element = y_element;
  p.store = accumulate ? INT8_CUDA_ACCUMULATE : INT8_CUDA_OVERWRITE;
  std::vector<double> expected(m * n), magnitude(m * n);
  for (int64_t r = 0; r < m; ++r) {
    for (int64_t c = 0; c < n; ++c) {
      double sum = has_bias ? bias[c] : 0, all = std::abs(sum);
      if (accumulate) sum += y.get(r * ldy + c), all += std::abs(y.get(r * ldy + c));
      for (int64_t i = 0; i < k; ++i) {
        const double product = static_cast<double>(xf[r * k + i]) * static_cast<double>(wf[c * k + i]);
        sum += product, all += std::abs(product);
      }
      expected[r * n + c] = sum, magnitude[r * n + c] = all;
    }
  }
  auto check = [&](const char *path) {
    Values got(y_element, y.count());
    got.bytes = dy.get();
    for (int64_t r = 0; r < m; ++r) {
      for (int64_t c = 0; c < ldy; ++c) {
        const double value = got.get(r * ldy + c);
        // cuBLASLt may round the product to a 16-bit y's type before it adds the bias, which is of that type, too.
        const double rounded = has_bias && y_element != INT8_CUDA_F32 && m > int8_cuda::kFloatGemvM && c < n
                                   ? unit_of(y_element) * (std::abs(expected[r * n + c] - bias[c]) + std::abs(bias[c])) : 0;
        const bool good = c < n ? close(value, expected[r * n + c], y_element, 2e-6 * magnitude[r * n + c] + rounded)
                                : value == y.get(r * ldy + c);
        if (!good) {
          return fail("%s element %d y %d m %ld n %ld k %ld ldx %ld ldy %ld bias %d store %d offset %zu: (%ld, %ld) is %g, not %g", path, element, y_element, m, n,
                      k, ldx, ldy, has_bias, accumulate, offset, r, c, value, c < n ? expected[r * n + c] : y.get(r * ldy + c));
        }
      }
    }
  };
  ok(int8_cuda_float_linear(&p), "linear");
  check("linear");
  const auto together = dy.get();
  dy.set(y.bytes);
  ok(int8_cuda::launch_float_tiles(p), "tiles");
  check("tiles");
  if (m <= 8) {
    // By both kernels: the same bits.
    dy.set(y.bytes);
    ok(int8_cuda::launch_float_gemv(p, 132, true), "registers");
    ++checks;
    if (dy.get() != together) fail("linear element %d m %ld n %ld k %ld: other bits than by the kernel of other devices", element, m, n, k);
  }
  if (m > 1 && m <= 8) {
    // Row by row: the same bits.
    dy.set(y.bytes);
    for (int64_t r = 0; r < m; ++r) {
      auto q = p;
      q.x = static_cast<const uint8_t *>(p.x) + r * ldx * Values::size_of(element);
      q.y = dy.data + r * ldy * Values::size_of(y_element);
      q.m = 1;
      ok(int8_cuda_float_linear(&q), "linear");
    }
    ++checks;
    if (dy.get() != together) fail("linear element %d m %ld n %ld k %ld: rows depend on the batch", element, m, n, k);
  }
}

// ---- Sampling: int8_nn::Sampler. ----

// The token, and how near the target came to a boundary between tokens, in parts of the total.
int32_t sample(const std::vector<float> &logits, const int8_cuda_sampler &s, double *margin) {
  *margin = 1;
  for (float v : logits) if (std::isnan(v)) return -1;
  const int n = static_cast<int>(logits.size());
  if (!(s.temperature > 0)) return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  std::vector<int32_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  auto rank = [](float v) {
    int32_t bits;
    std::memcpy(&bits, &v, 4);
    return bits ^ static_cast<int32_t>(static_cast<uint32_t>(bits >> 31) >> 1);
  };
  auto before = [&](int32_t a, int32_t b) {
    const int32_t ra = rank(logits[a]), rb = rank(logits[b]);
    return ra != rb ? ra > rb : a < b;
  };
  if (s.top_k > 0 && s.top_k < n) {
    std::nth_element(order.begin(), order.begin() + s.top_k - 1, order.end(), before);
    order.resize(s.top_k);
  }
  std::sort(order.begin(), order.end(), before);
  const double largest = logits[order[0]];
  std::vector<double> weights;
  for (int32_t id : order) weights.push_back(std::exp((static_cast<double>(logits[id]) - largest) / static_cast<double>(s.temperature)));
  double total = 0;
  for (double w : weights) total += w;
  if (s.top_p < 1) {
    const double enough = static_cast<double>(s.top_p) * total;
    size_t kept = 0;
    double sum = 0;
    for (; kept < weights.size(); ++kept) {
      sum += weights[kept];
      *margin = std::min(*margin, std::abs(sum - enough) / total);
      if (!(sum < enough)) break;
    }
    weights.resize(std::min(kept + 1, weights.size()));
    total = 0;
    for (double w : weights) total += w;
  }
  double target = s.uniform * total;
  for (size_t i = 0; i < weights.size(); ++i) {
    target -= weights[i];
    *margin = std::min(*margin, std::abs(target) / total);
    if (target < 0) return order[i];
  }
  return order[weights.size() - 1];
}

void test_sampling(Random &random, int64_t vocabulary, int kind) {
  const int rows = 13;
  const int64_t ld = vocabulary + random.choose<int64_t>({0, 0, 3, 4});
  std::vector<float> logits(rows * ld, 1e9f);
  std::vector<int8_cuda_sampler> samplers(rows);
  for (int r = 0; r < rows; ++r) {
    float *row = &logits[r * ld];
    for (int64_t i = 0; i < vocabulary; ++i) {
      const float v = random.normal() * 3;
      switch (kind) {
        case 0: row[i] = v; break;
        case 1: row[i] = std::round(v); break;                                           // ties
        case 2: row[i] = 2.5f; break;                                                   // equal
        case 3: row[i] = random.below(20) == 0 ? v : -INFINITY; break;                  // masked
        case 4: row[i] = i % 1000 == 7 ? 20 + v : v; break;                             // a sharp head
        default: row[i] = random.below(2) ? 0.0f : -0.0f; break;
      }
    }
    if (kind == 3) row[random.below(vocabulary)] = 1.0f;
    int8_cuda_sampler s{};
    s.uniform = random.choose({random.uniform(), random.uniform(), random.uniform(), 0.0, 1 - 0x1p-53});
    s.temperature = r == 0 ? 0.0f : random.choose({0.05f, 0.7f, 1.0f, 1.5f});
    s.top_p = random.choose({1.0f, 1.0f, 0.95f, 0.5f, 0.01f});
    s.top_k = random.choose({0, 0, 1, 2, 50, 50, 512, 1000, 1024, 1025, 3000, static_cast<int>(vocabulary), static_cast<int>(vocabulary) + 5});
    if (r == 1) row[random.below(vocabulary)] = NAN;
    if (r == 2) s.temperature = 0, row[random.below(vocabulary)] = NAN;
    if (r == 3) s.temperature = 0, row[random.below(vocabulary)] = INFINITY;
    if (r == 4) s.temperature = 0, std::fill(row, row + vocabulary, -INFINITY);
    samplers[r] = s;
  }
  Buffer<float> dlogits(logits);
  Buffer<int8_cuda_sampler> dsamplers(samplers);
  Buffer<int32_t> tokens(rows);
  int8_cuda_sample_params p{};
  p.logits = dlogits.data, p.samplers = dsamplers.data, p.tokens = tokens.data, p.rows = rows, p.vocabulary = vocabulary, p.ld = ld;
  ok(int8_cuda_sample_workspace(&p, &p.workspace_bytes), "workspace");
  Buffer<uint8_t> workspace(p.workspace_bytes);
  MUST(cudaMemset(workspace.data, 0xa5, p.workspace_bytes));
  p.workspace = workspace.data;
  ok(int8_cuda_sample(&p), "sample");
  const auto got = tokens.get();
  std::vector<int32_t> expected(rows);
  std::vector<double> margins(rows);
  std::vector<std::thread> threads;
  for (int r = 0; r < rows; ++r) {
    threads.emplace_back([&, r] {
      expected[r] = sample(std::vector<float>(&logits[r * ld], &logits[r * ld] + vocabulary), samplers[r], &margins[r]);
    });
  }
  for (auto &t : threads) t.join();
  for (int r = 0; r < rows; ++r) {
    ++checks;
    const auto &s = samplers[r];
    if (got[r] != expected[r] && margins[r] > 1e-10) {
      fail("sample vocabulary %ld kind %d row %d (u %g T %g top-p %g top-k %d): %d, not %d (margin %g)", vocabulary, kind, r, s.uniform, s.temperature,
           s.top_p, s.top_k, got[r], expected[r], margins[r]);
    }
  }
}

void test_refusals() {
  auto refused = [](const char *what, int8_cuda_status got, int8_cuda_status expected) {
    ++checks;
    if (got != expected) fail("%s: status %d, not %d", what, got, expected);
  };
  Buffer<float> x(4096);
  int8_cuda_transform_params t{};
  refused("transform null", int8_cuda_apply_transform(nullptr), INT8_CUDA_INVALID);
  t.x = x.data, t.y = x.data, t.rows = 2, t.k = 8, t.groups = 1, t.ldx = 8, t.ldy = 8, t.x_element = t.y_element = INT8_CUDA_F32;
  auto with = [&](auto change) {
    auto copy = t;
    change(copy);
    return int8_cuda_apply_transform(&copy);
  };
  refused("ldx", with([](auto &c) { c.ldx = 7; }), INT8_CUDA_INVALID);
  refused("element", with([](auto &c) { c.x_element = 3; }), INT8_CUDA_INVALID);
  refused("store", with([](auto &c) { c.store = 2; }), INT8_CUDA_INVALID);
  refused("function", with([](auto &c) { c.transform.function = 6; }), INT8_CUDA_INVALID);
  refused("gain", with([](auto &c) { c.transform.function = INT8_CUDA_RMS_NORM; }), INT8_CUDA_INVALID);
  refused("gated groups", with([](auto &c) { c.transform.function = INT8_CUDA_GATED, c.groups = 2, c.ldx = 64, c.ldy = 64; }), INT8_CUDA_INVALID);
  refused("no rows", with([](auto &c) { c.rows = 0, c.x = nullptr; }), INT8_CUDA_OK);
  int8_cuda_float_linear_params l{};
  l.x = l.w = x.data, l.y = x.data, l.m = l.n = l.k = 8, l.ldx = l.ldy = 8, l.element = INT8_CUDA_F16, l.y_element = INT8_CUDA_BF16;
  refused("linear types", int8_cuda_float_linear(&l), INT8_CUDA_INVALID);
  l.y_element = INT8_CUDA_F16, l.ldy = 7;
  refused("linear ldy", int8_cuda_float_linear(&l), INT8_CUDA_INVALID);
  int8_cuda_sample_params s{};
  Buffer<int8_cuda_sampler> samplers(1);
  s.logits = x.data, s.samplers = samplers.data, s.tokens = reinterpret_cast<int32_t *>(x.data), s.rows = 1, s.vocabulary = s.ld = 100;
  refused("sample workspace", int8_cuda_sample(&s), INT8_CUDA_WORKSPACE);
  s.vocabulary = 0;
  refused("sample vocabulary", int8_cuda_sample(&s), INT8_CUDA_INVALID);
}

// ---- Times: a captured graph of `count` calls, the calls rotating over operands larger than the L2 cache. ----

double microseconds(int count, const std::function<void(int, cudaStream_t)> &call) {
  cudaStream_t stream;
  MUST(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  for (int i = 0; i < 2; ++i) call(i, stream);
  MUST(cudaStreamSynchronize(stream));
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < count; ++i) call(i, stream);
  MUST(cudaStreamEndCapture(stream, &graph));
  MUST(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t start, end;
  MUST(cudaEventCreate(&start));
  MUST(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 7; ++i) {
    MUST(cudaEventRecord(start, stream));
    MUST(cudaGraphLaunch(exec, stream));
    MUST(cudaEventRecord(end, stream));
    MUST(cudaEventSynchronize(end));
    float ms;
    MUST(cudaEventElapsedTime(&ms, start, end));
    times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  MUST(cudaGraphExecDestroy(exec));
  MUST(cudaGraphDestroy(graph));
  MUST(cudaStreamDestroy(stream));
  return times[times.size() / 2] * 1000.0 / count;
}

void time_linear(int element, int64_t m, int64_t n, int64_t k, const char *path) {
  const int64_t size = Values::size_of(element), bytes = n * k * size;
  const int copies = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(24, (400ll << 20) / bytes)));
  Buffer<uint8_t> w(bytes * copies), x(m * k * size), y(m * n * 4), workspace(32 << 20);
  MUST(cudaMemset(w.data, 0x11, w.count));
  MUST(cudaMemset(x.data, 0x11, x.count));
  const std::string name = path;
  int8_cuda_status status = INT8_CUDA_OK;
  const double us = microseconds(copies > 1 ? copies * 2 : 6, [&](int i, cudaStream_t stream) {
    int8_cuda_float_linear_params p{};
    p.x = x.data, p.w = w.data + i % copies * bytes, p.y = y.data, p.workspace = workspace.data, p.workspace_bytes = workspace.count;
    p.stream = stream, p.m = m, p.n = n, p.k = k, p.ldx = k, p.ldy = n, p.element = p.y_element = element;
    const auto got = name == "own"        ? int8_cuda::launch_float_gemv(p, 132, true)
                     : name == "cublaslt" ? int8_cuda::cublaslt_linear(p)
                     : name == "tiles"    ? int8_cuda::launch_float_tiles(p)
                                          : int8_cuda_float_linear(&p);
    if (got != INT8_CUDA_OK) status = got;
  });
  std::printf("linear %-8s %s m %4ld n %6ld k %6ld: %8.2f us", path, element == INT8_CUDA_F32 ? "f32" : element == INT8_CUDA_F16 ? "f16" : "bf16", m, n, k, us);
  if (m <= 32) std::printf("  %5.0f GB/s  %4.1f %% of 4300", static_cast<double>(bytes) / us / 1e3, static_cast<double>(bytes) / us / 4300e3 * 100);
  else std::printf("  %6.1f TFLOP/s", 2.0 * m * n * k / us / 1e6);
  std::printf(status == INT8_CUDA_OK ? "\n" : "  status %d\n", status);
}

void time_sampling(int64_t rows, int64_t vocabulary, float temperature, float top_p, int top_k) {
  const int copies = static_cast<int>(std::max<int64_t>(2, std::min<int64_t>(40, (100ll << 20) / (rows * vocabulary * 4))));
  Random random{7};
  std::vector<float> logits(rows * vocabulary * copies);
  std::vector<float> base(1 << 20);
  for (auto &v : base) v = random.normal() * 3;
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = base[(i * 7 + i / 1000003) & 0xfffff] + (i % 12345 == 3 ? 9.0f : 0.0f);
  Buffer<float> dlogits(logits);
  std::vector<int8_cuda_sampler> samplers(rows);
  for (auto &s : samplers) s.uniform = random.uniform(), s.temperature = temperature, s.top_p = top_p, s.top_k = top_k;
  Buffer<int8_cuda_sampler> dsamplers(samplers);
  Buffer<int32_t> tokens(rows);
  int8_cuda_sample_params p{};
  p.samplers = dsamplers.data, p.tokens = tokens.data, p.rows = rows, p.vocabulary = p.ld = vocabulary;
  ok(int8_cuda_sample_workspace(&p, &p.workspace_bytes), "workspace");
  Buffer<uint8_t> workspace(p.workspace_bytes);
  p.workspace = workspace.data;
  const double us = microseconds(40, [&](int i, cudaStream_t stream) {
    p.logits = dlogits.data + i % copies * rows * vocabulary;
    p.stream = stream;
    ok(int8_cuda_sample(&p), "sample");
  });
  std::printf("sample rows %3ld vocabulary %6ld T %.1f top-p %.2f top-k %4d: %8.2f us\n", rows, vocabulary, temperature, top_p, top_k, us);
}

void time_transform(const char *name, int function, int64_t rows, int64_t k, int64_t groups, int tx, int ty) {
  const bool gated = function == INT8_CUDA_GATED;
  const int64_t xwidth = k * groups * (gated ? 2 : 1), ywidth = k * groups, sx = Values::size_of(tx), sy = Values::size_of(ty);
  const int copies = static_cast<int>(std::max<int64_t>(2, std::min<int64_t>(16, (200ll << 20) / (rows * xwidth * sx))));
  Buffer<uint8_t> x(rows * xwidth * sx * copies), y(rows * ywidth * sy * copies);
  Buffer<float> gain(k);
  MUST(cudaMemset(x.data, 0x31, x.count));
  MUST(cudaMemset(gain.data, 0x31, k * 4));
  const double us = microseconds(32, [&](int i, cudaStream_t stream) {
    int8_cuda_transform_params p{};
    p.x = x.data + i % copies * rows * xwidth * sx, p.y = y.data + i % copies * rows * ywidth * sy, p.stream = stream, p.rows = rows, p.k = k;
    p.groups = groups, p.ldx = xwidth, p.ldy = ywidth, p.x_element = tx, p.y_element = ty;
    p.transform.function = function, p.transform.activation = INT8_CUDA_SILU, p.transform.gain = gain.data, p.transform.eps = 1e-5f;
    ok(int8_cuda_apply_transform(&p), "transform");
  });
  std::printf("%-10s x %d y %d rows %5ld groups %2ld k %6ld: %8.2f us  %5.0f GB/s\n", name, tx, ty, rows, groups, k, us,
              static_cast<double>(rows) * static_cast<double>(xwidth * sx + ywidth * sy) / us / 1e3);
}

}  // namespace

void time_linears() {
  for (int64_t m : {1, 4, 8}) {
    for (const char *path : {"chosen", "own"}) {
      for (int64_t k : {4096, 8192, 16384}) time_linear(INT8_CUDA_F16, m, 4096, k, path);
      time_linear(INT8_CUDA_F16, m, 50272, 4096, path);
      time_linear(INT8_CUDA_F16, m, 1024, 4096, path);
      time_linear(INT8_CUDA_F16, m, 6144, 4096, path);
      time_linear(INT8_CUDA_F16, m, 2560, 2560, path);
    }
    time_linear(INT8_CUDA_BF16, m, 14336, 4096, "chosen");
    time_linear(INT8_CUDA_F32, m, 4096, 4096, "chosen");
    time_linear(INT8_CUDA_F32, m, 50272, 4096, "chosen");
  }
}

int main(int argc, char **argv) {
  cudaDeviceProp properties;
  MUST(cudaGetDeviceProperties(&properties, 0));
  std::printf("%s, cuBLASLt %s\n", properties.name, int8_cuda::cublaslt_found() ? "found" : "not found");
  Random random{42};
  const std::string mode = argc > 1 ? argv[1] : "";
  const bool quick = mode == "quick";
  if (mode == "linear") {
    time_linears();
    return 0;
  }

  for (int tx = 0; tx < 3; ++tx) {
    for (int ty = 0; ty < 3; ++ty) {
      for (int64_t k : {1, 7, 8, 31, 64, 65, 128, 255, 256, 257, 264, 768, 4096, 4097, 4104, 11008, 16384, 16392, 20001, 20008}) {
        if (quick && (random.below(8) != 0 || k > 17000)) continue;
        for (int function = 0; function < 6; ++function) {
          const bool active = function == INT8_CUDA_ACTIVATION || function == INT8_CUDA_GATED;
          for (int activation = 0; activation < (active ? 4 : 1); ++activation) test_transform(random, function, activation, k, tx, ty);
        }
      }
    }
  }
  std::printf("transforms: %ld checks, %d failures\n", checks, failures);
  for (int i = 0; i < 3; ++i) {
    for (int64_t width : {1, 7, 8, 64, 1000, 4096, 5120, 5121}) {
      for (int te = 0; te < 3; ++te) test_gather(random, width, te, static_cast<int>(random.below(3)));
    }
  }
  std::printf("gathers: %ld checks, %d failures\n", checks, failures);
  {
    Buffer<uint8_t> workspace(32 << 20);
    struct Shape { int64_t n, k; };
    for (int element = 0; element < 3; ++element) {
      for (int y_element : {element, static_cast<int>(INT8_CUDA_F32)}) {
        for (int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 130}) {
          for (Shape s : {Shape{1, 1}, {7, 5}, {5, 0}, {8, 8}, {17, 31}, {33, 24}, {64, 100}, {129, 1000}, {130, 1001}, {2113, 256}, {6001, 520}, {257, 4104}, {64, 16384}}) {
            if (m == 130 && s.n * s.k > 1000000) continue;
            if (quick && (random.below(4) != 0 || m * s.n * s.k > 4000000)) continue;
            test_linear(random, element, y_element, m, s.n, s.k, workspace);
          }
        }
      }
    }
  }
  std::printf("linear: %ld checks, %d failures\n", checks, failures);
  for (int64_t vocabulary : {1, 2, 31, 32, 33, 100, 1000, 1024, 1025, 4097, 32000, 50257, 50272, 128256, 262144, 262145}) {
    if (quick && vocabulary != 33 && vocabulary != 1025 && vocabulary != 32000) continue;
    for (int kind = 0; kind < 6; ++kind) {
      for (int repeat = 0; repeat < (quick ? 1 : vocabulary < 5000 ? 8 : vocabulary < 60000 ? 4 : 2); ++repeat) test_sampling(random, vocabulary, kind);
    }
  }
  std::printf("sampling: %ld checks, %d failures\n", checks, failures);
  test_refusals();
  MUST(cudaDeviceSynchronize());
  std::printf("all: %ld checks, %d failures\n", checks, failures);
  std::fflush(stdout);

  if (!quick) {
    time_linears();
    for (int64_t m : {1, 8, 16, 32, 1024}) {
      time_linear(INT8_CUDA_F16, m, 4096, 4096, "cublaslt");
      time_linear(INT8_CUDA_F16, m, 50272, 4096, "cublaslt");
    }
    time_linear(INT8_CUDA_F32, 1024, 4096, 4096, "cublaslt");
    time_linear(INT8_CUDA_F16, 16, 4096, 4096, "tiles");
    time_linear(INT8_CUDA_F16, 1024, 4096, 4096, "tiles");
    time_linear(INT8_CUDA_F32, 1024, 4096, 4096, "tiles");
    for (int64_t vocabulary : {50272, 128256, 262144}) {
      for (int64_t rows : {1, 32}) {
        time_sampling(rows, vocabulary, 0, 1, 0);
        time_sampling(rows, vocabulary, 0.8f, 1, 50);
        time_sampling(rows, vocabulary, 0.8f, 0.9f, 50);
        time_sampling(rows, vocabulary, 0.8f, 0.9f, 0);
        time_sampling(rows, vocabulary, 1, 1, 0);
        time_sampling(rows, vocabulary, 1, 1, 1024);
      }
    }
    for (int64_t rows : {1, 4096}) {
      time_transform("rms", INT8_CUDA_RMS_NORM, rows, 4096, 1, INT8_CUDA_F32, INT8_CUDA_F16);
      time_transform("rms", INT8_CUDA_RMS_NORM, rows, 8192, 1, INT8_CUDA_F32, INT8_CUDA_BF16);
      time_transform("layer norm", INT8_CUDA_LAYER_NORM, rows, 4096, 1, INT8_CUDA_F16, INT8_CUDA_F16);
      time_transform("rms heads", INT8_CUDA_RMS_NORM, rows, 128, 40, INT8_CUDA_F16, INT8_CUDA_F16);
      time_transform("gated", INT8_CUDA_GATED, rows, 14336, 1, INT8_CUDA_F16, INT8_CUDA_F16);
      time_transform("silu", INT8_CUDA_ACTIVATION, rows, 16384, 1, INT8_CUDA_F16, INT8_CUDA_F16);
    }
  }
  return failures == 0 ? 0 : 1;
}
