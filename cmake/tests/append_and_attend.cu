// Test and timing of int8_cuda_append_and_attend against int8_cuda_append_kv and int8_cuda_attention in turn, bit for bit.
//   append_and_attend          all cases; at most 40 failures and a summary; exits with 1 if one fails
//   append_and_attend --time   what it adds to a layer's products, in turn and by one call
#include "attention.cuh"

namespace {

// qkv from `from`, 20 us after the kernel behind this one may start.
__global__ void write_late(uint16_t *to, const uint16_t *from, int64_t count) {
  int8_cuda::pdl_trigger();
  for (const long long start = clock64(); clock64() - start < 40000;) {}
  for (int64_t i = blockIdx.x * 256 + threadIdx.x; i < count; i += gridDim.x * 256) to[i] = from[i];
}

// An append and an attention, or both by one call, with memory of their own for all that they write.
struct Step {
  Device cache, qkv, out, lengths, flag, workspace;
  int8_cuda_append_kv_params append{};
  int8_cuda_attention_params attention{};
  Step(const Buffer &cache_from, int64_t qkv_bytes, int64_t out_bytes, int sequences, size_t workspace_bytes)
      : cache(cache_from.data), qkv(static_cast<size_t>(qkv_bytes)), out(static_cast<size_t>(out_bytes)), lengths(std::vector<int32_t>(sequences, -5)), flag(std::vector<uint32_t>{0}),
        workspace(workspace_bytes) {
    CHECK(cudaMemset(qkv.pointer, 0xff, qkv.bytes));
    CHECK(cudaMemset(out.pointer, 0x77, out.bytes));
    CHECK(cudaMemset(workspace.pointer, 0xff, workspace.bytes));
  }
  void bind(const int8_cuda_append_kv_params &a, const int8_cuda_attention_params &b, const Device *separate_q) {
    append = a;
    attention = b;
    append.cache.data = attention.cache.data = cache.pointer;
    append.cache.lengths = attention.cache.lengths = lengths.as<int32_t>();
    append.cache.overflow = flag.as<uint32_t>();
    append.qkv = qkv.pointer;
    attention.q = separate_q != nullptr ? separate_q->pointer : qkv.pointer;
    attention.out = out.pointer;
    attention.workspace = workspace.pointer;
    attention.workspace_bytes = workspace.bytes;
  }
  int8_cuda_status run(bool both) const {
    if (both) return int8_cuda_append_and_attend(&append, &attention);
    const int8_cuda_status status = int8_cuda_append_kv(&append);
    return status != INT8_CUDA_OK ? status : int8_cuda_attention(&attention);
  }
};

bool same_bytes(const Device &a, const Device &b) {
  std::vector<uint8_t> x(a.bytes), y(b.bytes);
  a.read(&x);
  b.read(&y);
  return x == y;
}

// Elements that are cheap to make: excerpts of one pool.
void fill(Buffer *buffer, std::mt19937 &random) {
  static const std::vector<float> pool = [] {
    std::mt19937 seed(3);
    std::normal_distribution<float> normal;
    std::vector<float> numbers(1 << 16);
    for (float &n : numbers) n = normal(seed);
    return numbers;
  }();
  static std::vector<Buffer> typed;
  for (int element = static_cast<int>(typed.size()); element < 3; ++element) {
    typed.emplace_back(static_cast<int64_t>(pool.size()), element);
    for (size_t i = 0; i < pool.size(); ++i) typed.back().set(static_cast<int64_t>(i), pool[i]);
  }
  const std::vector<uint8_t> &from = typed[buffer->element].data;
  const size_t run = from.size() / 2;
  for (size_t at = 0; at < buffer->data.size(); at += run) std::memcpy(buffer->data.data() + at, from.data() + random() % (run / 4) * 4, std::min(run, buffer->data.size() - at));
}

// int8_cuda_append_and_attend gives the bits of both in turn, while the kernel before writes qkv late. q: qkv's type. `queries`:
// qkv has them. `fused`: one kernel is expected, which does not rotate qkv. steps > 1: a captured graph, replayed at successive
// positions.
void run_fused(const Case &c, int half, bool queries, bool fused, int steps, bool huge, unsigned seed) {
  std::mt19937 random(seed);
  const Batch batch(c.segments, c.sequence_pages, random);
  const int rows = static_cast<int>(batch.positions.size()), size = c.head_size;
  const std::string name = "fused, " + c.name() + ", half " + std::to_string(half) + (queries ? "" : ", no queries") + (steps > 1 ? ", steps" : "") + (huge ? ", huge" : "");
  const int64_t page_elements = 2LL * c.kv_heads * 64 * size, width = ((queries ? c.heads : 0) + 2LL * c.kv_heads) * size, ld = width + 8, ldo = c.heads * size + 8;
  Buffer cache(kLayers * batch.pages * page_elements, c.cache), qkv(rows * ld, c.q), q(rows * c.heads * size, c.q);
  fill(&cache, random);
  fill(&qkv, random);
  fill(&q, random);
  // Positions not yet written are NaN, but for the page that two sequences share.
  for (const Segment &s : c.segments) {
    const int64_t page = kLayer * batch.pages + batch.table[s.sequence * c.sequence_pages + s.position / 64];
    if (s.position < 64 && s.sequence < 2 && batch.sequence_count > 1) continue;
    for (int head = 0; head < 2 * c.kv_heads; ++head) {
      const int64_t from = page * page_elements + (static_cast<int64_t>(head) * 64 + s.position % 64) * size;
      std::memset(cache.data.data() + from * bytes_of(c.cache), 0xff, static_cast<size_t>((64 - s.position % 64) * size * bytes_of(c.cache)));
    }
  }
  // A rotated key beyond f16's range, from numbers within.
  if (huge) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int d = 0; d < 2 * half; ++d) qkv.set(row * ld + static_cast<int64_t>(c.heads) * size + d, 60000.0f);
    }
  }
  std::vector<float> cos(static_cast<size_t>(c.sequence_pages) * 64 * std::max(half, 1)), sin(cos.size()), slopes(c.heads), bias(static_cast<size_t>(c.heads) * (2 * std::max(c.reach, 0) + 1));
  for (size_t i = 0; i < cos.size(); ++i) {
    const float angle = static_cast<float>(random() % 6283) * 1e-3f;
    cos[i] = std::cos(angle);
    sin[i] = std::sin(angle);
  }
  for (int h = 0; h < c.heads; ++h) slopes[h] = std::exp2(-8.0f * (h + 1) / c.heads);
  for (float &b : bias) b = static_cast<float>(random() % 4000) * 1e-3f - 2;
  const DeviceBatch device_batch(batch);
  const Device device_cos(cos), device_sin(sin), device_slopes(slopes), device_bias(bias), source(qkv.data), separate(q.data);
  cudaStream_t stream;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  int8_cuda_append_kv_params a{};
  a.cos = half > 0 ? device_cos.as<float>() : nullptr;
  a.sin = half > 0 ? device_sin.as<float>() : nullptr;
  a.stream = stream;
  a.ld = ld;
  a.layer = kLayer;
  a.heads = queries ? c.heads : 0;
  a.half = half;
  a.element = c.q;
  a.cache = {nullptr, device_batch.table.as<int32_t>(), nullptr, nullptr, kLayers, batch.pages, c.sequence_pages, c.kv_heads, size, c.cache, 0};
  a.batch = device_batch.view(batch);
  int8_cuda_attention_params b{};
  b.slopes = c.slopes ? device_slopes.as<float>() : nullptr;
  b.distance_bias = c.reach >= 0 ? device_bias.as<float>() : nullptr;
  b.stream = stream;
  b.ldq = queries ? ld : c.heads * size;
  b.ldo = ldo;
  b.layer = kLayer;
  b.window = c.window;
  b.reach = std::max(c.reach, 0);
  b.heads = c.heads;
  b.mask = c.mask;
  b.q_element = c.q;
  b.out_element = c.out;
  b.scale = 2.0f / std::sqrt(static_cast<float>(size));
  b.softcap = c.softcap;
  b.cache = a.cache;
  b.batch = device_batch.view(batch);
  size_t bytes = 0;
  // Sizes of the cache count, its pointers do not.
  int8_cuda_status status = int8_cuda_attention_workspace(&b, &bytes);
  const int64_t qkv_bytes = static_cast<int64_t>(qkv.data.size()), out_bytes = rows * ldo * bytes_of(c.out);
  Step turns(cache, qkv_bytes, out_bytes, batch.sequence_count, bytes), one(cache, qkv_bytes, out_bytes, batch.sequence_count, bytes);
  turns.bind(a, b, queries ? nullptr : &separate);
  one.bind(a, b, queries ? nullptr : &separate);
  const auto enqueue = [&](const Step &step, bool both) {
    write_late<<<8, 256, 0, stream>>>(step.qkv.as<uint16_t>(), source.as<uint16_t>(), qkv_bytes / 2);
    const int8_cuda_status s = step.run(both);
    if (s != INT8_CUDA_OK) status = s;
  };
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  if (steps > 1) {
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    enqueue(one, true);
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&executable, graph, 0));
  }
  std::vector<int32_t> positions = batch.positions;
  for (int step = 0; step < steps; ++step) {
    CHECK(cudaMemcpyAsync(device_batch.positions.pointer, positions.data(), positions.size() * 4, cudaMemcpyHostToDevice, stream));
    if (step > 0) {
      fill(&qkv, random);
      CHECK(cudaMemcpyAsync(source.pointer, qkv.data.data(), qkv.data.size(), cudaMemcpyHostToDevice, stream));
    }
    enqueue(turns, false);
    if (executable != nullptr) CHECK(cudaGraphLaunch(executable, stream));
    if (executable == nullptr) enqueue(one, true);
    const cudaError_t error = cudaStreamSynchronize(stream);
    if (status != INT8_CUDA_OK || error != cudaSuccess) {
      failures.push_back(name + ": status " + std::to_string(status) + ", " + cudaGetErrorString(error));
      if (error != cudaSuccess) finish();
      break;
    }
    std::string differ;
    if (!same_bytes(turns.out, one.out)) differ += " out";
    if (!same_bytes(turns.cache, one.cache)) differ += " cache";
    if (!same_bytes(turns.lengths, one.lengths)) differ += " lengths";
    if (!same_bytes(turns.flag, one.flag)) differ += " overflow";
    std::vector<uint8_t> after(qkv.data.size()), flag(4);
    one.qkv.read(&after);
    turns.flag.read(&flag);
    if (half > 0 && (after == qkv.data) != fused) differ += fused ? " (not one kernel)" : " (one kernel)";
    if (huge && flag[0] == 0 && c.q == INT8_CUDA_F16) differ += " (no overflow)";
    if (!differ.empty()) {
      failures.push_back(name + ": step " + std::to_string(step) + " differs in" + differ);
      break;
    }
    for (int32_t &position : positions) ++position;
  }
  // Disagreement.
  if (seed % 16 == 0) {
    const auto expect = [&](const char *what, auto change) {
      int8_cuda_append_kv_params x = one.append;
      int8_cuda_attention_params y = one.attention;
      change(x, y);
      const int8_cuda_status s = int8_cuda_append_and_attend(&x, &y);
      if (s != INT8_CUDA_INVALID) failures.push_back(name + ": another " + what + ": status " + std::to_string(s));
    };
    expect("layer", [](auto &x, auto &) { x.layer = 0; });
    expect("cache", [&](auto &, auto &y) { y.cache.data = turns.cache.pointer; });
    expect("page table", [](auto &x, auto &) { x.cache.page_table += 1; });
    expect("batch", [](auto &, auto &y) { y.batch.positions += 1; });
    expect("stream", [](auto &x, auto &) { x.stream = nullptr; });
    if (queries) expect("q", [&](auto &, auto &y) { y.q = turns.qkv.pointer; });
    if (queries) expect("ldq", [](auto &, auto &y) { y.ldq += 8; });
    if (int8_cuda_append_and_attend(nullptr, &one.attention) != INT8_CUDA_INVALID) failures.push_back("append is null");
    CHECK(cudaStreamSynchronize(stream));
  }
  if (executable != nullptr) cudaGraphExecDestroy(executable);
  if (graph != nullptr) cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

int fused_cases() {
  int count = 0;
  const auto run = [&](const Case &c, int half, bool queries, bool fused, int steps = 1, bool huge = false) { run_fused(c, half, queries, fused, steps, huge, 5000 + count++); };
  const std::vector<std::vector<Segment>> batches = {{{0, 0, 1}}, {{0, 63, 1}}, {{0, 64, 1}}, {{0, 255, 1}, {1, 256, 1}, {2, 15, 1}}, {{0, 700, 1}, {1, 511, 1}, {2, 127, 1}, {3, 1, 1}}};
  for (int size : {64, 80, 96, 128, 256}) {
    for (int group : {1, 2, 4, 8}) {
      for (int rotary = 0; rotary < 3; ++rotary) {
        for (size_t i = 0; i < batches.size(); ++i) {
          Case c;
          c.segments = batches[i];
          c.head_size = size;
          c.kv_heads = 2;
          c.heads = 2 * group;
          const int kind = count % 6;
          c.cache = c.q = c.out = count % 2 == 0 ? INT8_CUDA_F16 : INT8_CUDA_BF16;
          if (count % 5 == 0) c.out = INT8_CUDA_F32;
          if (kind == 1 || kind == 5) c.window = 50;
          if (kind == 2) c.softcap = 3;
          if (kind == 3 || kind == 5) c.slopes = true;
          if (kind == 4) c.reach = 40;
          run(c, rotary == 0 ? 0 : rotary == 1 ? 16 : size / 2, true, true);
        }
      }
    }
  }
  for (int element : {INT8_CUDA_F16, INT8_CUDA_BF16}) {
    for (int size : {64, 128, 256}) {
      Case c;
      c.head_size = size;
      c.cache = c.q = c.out = element;
      // Many splits, some empty; one kv head of three tiles of query heads; a window across splits.
      c.sequence_pages = 64;
      for (int position : {511, 512, 513, 1023, 1024, 3000, 4095}) {
        c.segments = {{0, position, 1}, {1, 70, 1}};
        c.heads = c.kv_heads = 2;
        c.window = 0;
        run(c, size / 2, true, true);
        c.heads = 19;
        c.kv_heads = 1;
        c.window = position % 2 == 0 ? 1000 : 0;
        run(c, size / 4, true, true);
      }
      // Across pages, and from one split to several.
      c.window = 0;
      c.heads = 8;
      c.kv_heads = 2;
      c.sequence_pages = 12;
      c.segments = {{0, 507, 1}, {1, 126, 1}, {2, 60, 1}, {3, 0, 1}};  // page 0 of sequences 0 and 1 is one: no row writes it
      run(c, size / 2, true, true, 9);
      run(c, size / 2, true, true, 1, true);
      c.sequence_pages = 3;
      c.segments = {{0, 126, 1}};
      run(c, 0, true, true, 5);
    }
  }
  // In turn: types, layouts, masks and batches that the kernel does not serve.
  for (int kind = 0; kind < 8; ++kind) {
    Case c;
    c.heads = 4;
    c.kv_heads = 2;
    c.head_size = kind == 3 ? 20 : 64;
    c.segments = {{0, 100, 1}, {1, 64, 1}};
    int half = 16;
    bool queries = true;
    switch (kind) {
      case 0: c.cache = INT8_CUDA_F32; c.q = INT8_CUDA_F32; break;
      case 1: c.q = INT8_CUDA_F32; break;
      case 2: c.q = INT8_CUDA_BF16; break;
      case 3: half = 10; break;
      case 4: half = 12; break;
      case 5: c.mask = INT8_CUDA_FULL; break;
      case 6: c.segments = {{0, 100, 3}, {1, 0, 40}}; break;
      case 7: queries = false; half = 0; break;
    }
    run(c, half, queries, false);
  }
  return count;
}

// Reads `count` uint4 as a GEMV reads weights, behind the kernel before.
__global__ void __launch_bounds__(256) read_weights(const uint4 *weights, int64_t count, uint32_t *sink) {
  int8_cuda::pdl_trigger();
  int8_cuda::pdl_wait();
  uint32_t bits = 0;
#pragma unroll 8
  for (int64_t i = blockIdx.x * 256 + threadIdx.x; i < count; i += gridDim.x * 256) bits ^= weights[i].x ^ weights[i].y ^ weights[i].z ^ weights[i].w;
  if (bits == 0x9e3779b9) *sink = bits;
}

// Microseconds that append and attention add to a layer of two products of 32 MB each, in turn and by one call.
void time_step(int heads, int kv_heads, int rows, int length, int sequence_pages) {
  std::mt19937 random(1);
  const int size = 128, layers = 32, element = INT8_CUDA_F16;
  const Batch batch(std::vector<Segment>([&] { std::vector<Segment> s; for (int i = 0; i < rows; ++i) s.push_back({i, length - 1, 1}); return s; }()), sequence_pages, random);
  const int64_t width = (heads + 2LL * kv_heads) * size, weight_bytes = 32 << 20;
  const Device cache(static_cast<size_t>(layers) * batch.pages * 2 * kv_heads * 64 * size * 2), qkv(static_cast<size_t>(rows * width * 2)), out(static_cast<size_t>(rows) * heads * size * 2),
      lengths(static_cast<size_t>(rows) * 4), flag(4), tables(static_cast<size_t>(sequence_pages) * 64 * size / 2 * 4), weights(static_cast<size_t>(weight_bytes) * 16);
  CHECK(cudaMemset(cache.pointer, 0x2c, cache.bytes));
  CHECK(cudaMemset(qkv.pointer, 0x2c, qkv.bytes));
  CHECK(cudaMemset(tables.pointer, 0, tables.bytes));
  CHECK(cudaMemset(weights.pointer, 0, weights.bytes));
  const DeviceBatch device_batch(batch);
  cudaStream_t stream;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  int8_cuda_append_kv_params a{};
  a.qkv = qkv.pointer;
  a.cos = a.sin = tables.as<float>();
  a.stream = stream;
  a.ld = width;
  a.heads = heads;
  a.half = size / 2;
  a.element = element;
  a.cache = {cache.pointer, device_batch.table.as<int32_t>(), lengths.as<int32_t>(), flag.as<uint32_t>(), layers, batch.pages, sequence_pages, kv_heads, size, element, 0};
  a.batch = device_batch.view(batch);
  int8_cuda_attention_params b{};
  b.q = qkv.pointer;
  b.out = out.pointer;
  b.stream = stream;
  b.ldq = width;
  b.ldo = static_cast<int64_t>(heads) * size;
  b.heads = heads;
  b.q_element = b.out_element = element;
  b.scale = 0.1f;
  b.cache = a.cache;
  b.batch = a.batch;
  size_t bytes = 0;
  int8_cuda_attention_workspace(&b, &bytes);
  const Device workspace(bytes);
  b.workspace = workspace.pointer;
  b.workspace_bytes = bytes;
  cudaEvent_t start, stop;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));
  float us[3] = {};
  int8_cuda_status status = INT8_CUDA_OK;
  for (int mode = 0; mode < 3; ++mode) {
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    int read = 0;
    const auto product = [&] {
      int8_cuda::Launch launch(dim3(264), dim3(256), 0, stream, true);
      const uint4 *from = reinterpret_cast<const uint4 *>(weights.as<uint8_t>() + read++ % 16 * weight_bytes);
      CHECK(cudaLaunchKernelEx(&launch.config, read_weights, from, weight_bytes / 16, flag.as<uint32_t>()));
    };
    for (int layer = 0; layer < layers; ++layer) {
      a.layer = b.layer = layer;
      product();
      int8_cuda_status s = INT8_CUDA_OK;
      if (mode == 1) s = int8_cuda_append_kv(&a);
      if (mode == 1 && s == INT8_CUDA_OK) s = int8_cuda_attention(&b);
      if (mode == 2) s = int8_cuda_append_and_attend(&a, &b);
      if (s != INT8_CUDA_OK) status = s;
      product();
    }
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&executable, graph, 0));
    us[mode] = 1e30f;
    for (int i = 0; i < 60; ++i) {
      CHECK(cudaEventRecord(start, stream));
      CHECK(cudaGraphLaunch(executable, stream));
      CHECK(cudaEventRecord(stop, stream));
      CHECK(cudaStreamSynchronize(stream));
      float milliseconds = 0;
      CHECK(cudaEventElapsedTime(&milliseconds, start, stop));
      us[mode] = std::min(us[mode], milliseconds * 1000 / layers);
    }
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
  }
  std::printf("step %d x %d, %d/%d x 128, capacity %d: products %.1f us a layer; append, attend + %.2f; one call + %.2f (status %d)\n", rows, length, heads, kv_heads, sequence_pages * 64, us[0],
              us[1] - us[0], us[2] - us[0], status);
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  cudaStreamDestroy(stream);
}

}  // namespace

int main(int count, char **arguments) {
  if (count > 1 && std::string(arguments[1]) == "--time") {
    time_step(32, 32, 1, 128, 8);
    time_step(32, 32, 1, 512, 8);
    time_step(32, 32, 1, 128, 32);
    time_step(32, 32, 1, 512, 32);
    time_step(32, 8, 1, 512, 32);
    time_step(32, 32, 1, 2000, 32);
    time_step(32, 32, 8, 128, 8);
    return 0;
  }
  finish(std::to_string(fused_cases()) + " cases");
}
