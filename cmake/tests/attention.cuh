// What the tests of attention share: elements and buffers, batches, cases; failures are collected and printed at the end.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "common/launch.cuh"
#include "int8_cuda_model.h"

namespace {

std::vector<std::string> failures;

// Prints failures and the summary.
[[noreturn]] void finish(const std::string &summary = "ended by a device error") {
  for (size_t i = 0; i < std::min<size_t>(failures.size(), 40); ++i) std::printf("FAILED %s\n", failures[i].c_str());
  std::printf("%s: %zu failures\n", summary.c_str(), failures.size());
  std::exit(failures.empty() ? 0 : 1);
}

void check(cudaError_t error, const char *what) {
  if (error == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(error));
  std::exit(2);
}
#define CHECK(expression) check((expression), #expression)

const char *const kElementNames[] = {"f16", "bf16", "f32"};
int bytes_of(int element) { return element == INT8_CUDA_F32 ? 4 : 2; }
// Half a unit in the last place, relative.
double epsilon_of(int element) { return element == INT8_CUDA_F16 ? std::ldexp(1, -11) : element == INT8_CUDA_BF16 ? std::ldexp(1, -8) : std::ldexp(1, -24); }

// Elements of any type on the host.
struct Buffer {
  std::vector<uint8_t> data;
  int element;
  Buffer(int64_t count, int type) : data(static_cast<size_t>(count * bytes_of(type))), element(type) {}
  int64_t size() const { return static_cast<int64_t>(data.size()) / bytes_of(element); }
  float get(int64_t i) const {
    if (element == INT8_CUDA_F16) return __half2float(reinterpret_cast<const __half *>(data.data())[i]);
    if (element == INT8_CUDA_BF16) return __bfloat162float(reinterpret_cast<const __nv_bfloat16 *>(data.data())[i]);
    return reinterpret_cast<const float *>(data.data())[i];
  }
  void set(int64_t i, float value) {
    if (element == INT8_CUDA_F16) {
      reinterpret_cast<__half *>(data.data())[i] = __float2half_rn(value);
    } else if (element == INT8_CUDA_BF16) {
      reinterpret_cast<__nv_bfloat16 *>(data.data())[i] = __float2bfloat16_rn(value);
    } else {
      reinterpret_cast<float *>(data.data())[i] = value;
    }
  }
  bool same(const Buffer &other, int64_t i) const { return std::memcmp(data.data() + i * bytes_of(element), other.data.data() + i * bytes_of(element), bytes_of(element)) == 0; }
};

// Device memory that lives as long as the object.
struct Device {
  void *pointer = nullptr;
  size_t bytes = 0;
  Device() = default;
  explicit Device(size_t count) : bytes(count) { CHECK(cudaMalloc(&pointer, std::max<size_t>(count, 256))); }
  template <typename T>
  explicit Device(const std::vector<T> &from) : Device(from.size() * sizeof(T)) {
    CHECK(cudaMemcpy(pointer, from.data(), bytes, cudaMemcpyHostToDevice));
  }
  Device(const Device &) = delete;
  Device &operator=(const Device &) = delete;
  ~Device() { cudaFree(pointer); }
  template <typename T>
  T *as() const { return static_cast<T *>(pointer); }
  void read(std::vector<uint8_t> *to) const { CHECK(cudaMemcpy(to->data(), pointer, to->size(), cudaMemcpyDeviceToHost)); }
};

struct Segment {
  int sequence, position, rows;
};

struct Case {
  int heads = 4, kv_heads = 2, head_size = 64;
  int cache = INT8_CUDA_F16, q = INT8_CUDA_F16, out = INT8_CUDA_F16;
  int mask = INT8_CUDA_CAUSAL;
  int window = 0, reach = -1;  // reach >= 0: distance bias
  float softcap = 0;
  bool slopes = false;
  bool contiguous = false;  // out
  std::vector<Segment> segments;
  int sequence_pages = 12;
  std::string name() const {
    char text[400];
    std::snprintf(text, sizeof text, "heads %d/%d x %d, cache %s q %s out %s, %s, window %d, softcap %g%s, reach %d%s, segments", heads, kv_heads, head_size,
                  kElementNames[cache], kElementNames[q], kElementNames[out], mask == INT8_CUDA_FULL ? "full" : "causal", window, softcap,
                  slopes ? ", slopes" : "", reach, contiguous ? ", contiguous" : "");
    std::string result = text;
    for (const Segment &s : segments) result += " " + std::to_string(s.position) + "+" + std::to_string(s.rows);
    return result;
  }
};

// Sequences 0.. of a case: page tables over a shuffled pool; sequence 1 shares its first page with sequence 0 (a fork).
struct Batch {
  std::vector<int32_t> positions, sequences, starts{0}, segment_sequences, table;
  int sequence_count = 0, pages = 0;
  Batch(const std::vector<Segment> &segments, int sequence_pages, std::mt19937 &random) {
    for (const Segment &s : segments) {
      for (int i = 0; i < s.rows; ++i) {
        positions.push_back(s.position + i);
        sequences.push_back(s.sequence);
      }
      starts.push_back(static_cast<int32_t>(positions.size()));
      segment_sequences.push_back(s.sequence);
      sequence_count = std::max(sequence_count, s.sequence + 1);
    }
    pages = sequence_count * sequence_pages + 3;
    std::vector<int32_t> pool(pages);
    for (int i = 0; i < pages; ++i) pool[i] = i;
    std::shuffle(pool.begin(), pool.end(), random);
    table.assign(pool.begin(), pool.begin() + sequence_count * sequence_pages);
    if (sequence_count > 1 && sequence_pages > 1) table[sequence_pages] = table[0];
  }
};

struct DeviceBatch {
  Device positions, sequences, starts, segment_sequences, table;
  explicit DeviceBatch(const Batch &b) : positions(b.positions), sequences(b.sequences), starts(b.starts), segment_sequences(b.segment_sequences), table(b.table) {}
  int8_cuda_batch view(const Batch &b) const {
    int8_cuda_batch v{};
    v.positions = positions.as<int32_t>();
    v.sequences = sequences.as<int32_t>();
    v.segment_starts = starts.as<int32_t>();
    v.segment_sequences = segment_sequences.as<int32_t>();
    v.rows = static_cast<int64_t>(b.positions.size());
    v.segments = static_cast<int64_t>(b.segment_sequences.size());
    return v;
  }
};

void parallel(int64_t count, const std::function<void(int64_t)> &body) {
  const int64_t workers = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::thread> threads;
  for (int64_t w = 0; w < workers; ++w) {
    threads.emplace_back([=] {
      for (int64_t i = w; i < count; i += workers) body(i);
    });
  }
  for (std::thread &t : threads) t.join();
}

constexpr int kLayers = 2, kLayer = 1;

std::vector<Segment> equal_segments(int count, int position, int rows) {
  std::vector<Segment> segments;
  for (int s = 0; s < count; ++s) segments.push_back({s, position, rows});
  return segments;
}

}  // namespace
