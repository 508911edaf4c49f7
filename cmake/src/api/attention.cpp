// int8_cuda_append_kv, int8_cuda_attention and int8_cuda_append_and_attend: checks, and the choice of the kernel.
#include "api/validation.cuh"
#include "attention/attention.cuh"

namespace int8_cuda {
namespace {

// Rows up to which each is a decode row whatever its segment: K and V come from the L2 cache for all but the first.
constexpr int64_t kDecodeRows = 16;

bool valid_element(int element) { return element >= INT8_CUDA_F16 && element <= INT8_CUDA_F32; }

bool valid_cache_sizes(const int8_cuda_kv_cache &c, int64_t layer) {
  return c.layers > 0 && layer >= 0 && layer < c.layers && c.pages > 0 && c.pages <= INT32_MAX && c.sequence_pages > 0 &&
         c.sequence_pages <= kMaxSize / INT8_CUDA_PAGE_POSITIONS && c.kv_heads > 0 && c.kv_heads <= 65535 && c.head_size > 0 && c.head_size <= 65536 &&
         valid_element(c.element);
}

bool valid_cache(const int8_cuda_kv_cache &c) {
  return c.data != nullptr && c.page_table != nullptr && c.lengths != nullptr && aligned(c.data, static_cast<uintptr_t>(element_bytes(c.element)));
}

bool valid_batch_sizes(const int8_cuda_batch &b) { return b.rows >= 0 && b.rows <= kMaxSize && b.segments >= (b.rows > 0 ? 1 : 0) && b.segments <= b.rows; }

bool valid_batch(const int8_cuda_batch &b) {
  return b.positions != nullptr && b.sequences != nullptr && b.segment_starts != nullptr && b.segment_sequences != nullptr;
}

bool valid_append_sizes(const int8_cuda_append_kv_params &p) {
  const int8_cuda_kv_cache &c = p.cache;
  if (!valid_cache_sizes(c, p.layer) || !valid_batch_sizes(p.batch) || p.heads < 0 || p.heads > 65535 || !valid_element(p.element)) return false;
  const int64_t width = (p.heads + 2 * static_cast<int64_t>(c.kv_heads)) * c.head_size;
  const bool rotation = p.cos == nullptr ? p.sin == nullptr : p.sin != nullptr && p.half > 0 && p.half <= c.head_size / 2;
  return rotation && p.ld >= width && width <= kMaxSize;
}

bool valid_append(const int8_cuda_append_kv_params &p) {
  return p.qkv != nullptr && aligned(p.qkv, static_cast<uintptr_t>(element_bytes(p.element))) && valid_cache(p.cache) && p.cache.overflow != nullptr && valid_batch(p.batch);
}

int8_cuda_status append_kv(const int8_cuda_append_kv_params &p) {
  if (!valid_append_sizes(p)) return INT8_CUDA_INVALID;
  if (p.batch.rows == 0) return INT8_CUDA_OK;
  if (!valid_append(p)) return INT8_CUDA_INVALID;
  Device device;
  INT8_CUDA_PASS(current_device(&device));
  if (device.major < 8) return INT8_CUDA_UNSUPPORTED;
  return launch_append_kv(p, device.major >= 9);
}

bool valid_attention_sizes(const int8_cuda_attention_params &p) {
  const int8_cuda_kv_cache &c = p.cache;
  if (!valid_cache_sizes(c, p.layer) || !valid_batch_sizes(p.batch)) return false;
  if (p.heads <= 0 || p.heads > 65535 || p.heads % c.kv_heads != 0) return false;
  return (p.mask == INT8_CUDA_CAUSAL || p.mask == INT8_CUDA_FULL) && valid_element(p.q_element) && valid_element(p.out_element) && p.window >= 0 && p.reach >= 0 &&
         p.reach <= kMaxSize && p.softcap >= 0.0f;
}

// Rows exist.
int8_cuda_status check_attention(const int8_cuda_attention_params &p, Device *device) {
  const int64_t width = static_cast<int64_t>(p.heads) * p.cache.head_size;
  const bool alignment = aligned(p.q, static_cast<uintptr_t>(element_bytes(p.q_element))) && aligned(p.out, static_cast<uintptr_t>(element_bytes(p.out_element)));
  if (p.q == nullptr || p.out == nullptr || !alignment || p.ldq < width || p.ldo < width || !valid_cache(p.cache) || !valid_batch(p.batch)) return INT8_CUDA_INVALID;
  // A position has one bias.
  if (p.slopes != nullptr && p.distance_bias != nullptr) return INT8_CUDA_INVALID;
  if (p.cache.head_size > kMaxHeadSize) return INT8_CUDA_UNSUPPORTED;
  INT8_CUDA_PASS(current_device(device));
  if (device->major < 8) return INT8_CUDA_UNSUPPORTED;
  return valid_workspace(p.workspace, p.workspace_bytes, decode_workspace(p, *device)) ? INT8_CUDA_OK : INT8_CUDA_WORKSPACE;
}

enum class Algorithm { kDecode, kPrefillMma, kGeneric };

Algorithm algorithm_of(const int8_cuda_attention_params &p) {
  // Rows are the grid's y.
  if ((p.batch.rows == p.batch.segments && p.batch.rows <= 65535) || p.batch.rows <= kDecodeRows) return Algorithm::kDecode;
  return prefill_mma_serves(p) ? Algorithm::kPrefillMma : Algorithm::kGeneric;
}

int8_cuda_status launch_attention(const int8_cuda_attention_params &p, const Device &device) {
  switch (algorithm_of(p)) {
    case Algorithm::kDecode: return launch_decode(p, device);
    case Algorithm::kPrefillMma: return launch_prefill_mma(p, device);
    case Algorithm::kGeneric: return launch_generic_attention(p, device);
  }
  return INT8_CUDA_INVALID;
}

int8_cuda_status attention(const int8_cuda_attention_params &p) {
  if (!valid_attention_sizes(p)) return INT8_CUDA_INVALID;
  if (p.batch.rows == 0) return INT8_CUDA_OK;
  Device device;
  INT8_CUDA_PASS(check_attention(p, &device));
  return launch_attention(p, device);
}

// `overflow`, which attention does not use, may differ.
bool agree(const int8_cuda_append_kv_params &a, const int8_cuda_attention_params &b) {
  const bool cache = a.cache.data == b.cache.data && a.cache.page_table == b.cache.page_table && a.cache.lengths == b.cache.lengths && a.cache.layers == b.cache.layers &&
                     a.cache.pages == b.cache.pages && a.cache.sequence_pages == b.cache.sequence_pages && a.cache.kv_heads == b.cache.kv_heads &&
                     a.cache.head_size == b.cache.head_size && a.cache.element == b.cache.element;
  const bool batch = a.batch.positions == b.batch.positions && a.batch.sequences == b.batch.sequences && a.batch.segment_starts == b.batch.segment_starts &&
                     a.batch.segment_sequences == b.batch.segment_sequences && a.batch.rows == b.batch.rows && a.batch.segments == b.batch.segments;
  const bool queries = a.heads == 0 || (a.heads == b.heads && a.qkv == b.q && a.ld == b.ldq && a.element == b.q_element);
  return a.layer == b.layer && a.stream == b.stream && cache && batch && queries;
}

int8_cuda_status append_and_attend(const int8_cuda_append_kv_params &a, const int8_cuda_attention_params &b) {
  if (!valid_append_sizes(a) || !valid_attention_sizes(b) || !agree(a, b)) return INT8_CUDA_INVALID;
  if (a.batch.rows == 0) return INT8_CUDA_OK;
  if (!valid_append(a)) return INT8_CUDA_INVALID;
  Device device;
  INT8_CUDA_PASS(check_attention(b, &device));
  if (decode_appends(a, b, device)) return launch_append_and_attend(a, b, device);
  INT8_CUDA_PASS(launch_append_kv(a, device.major >= 9));
  return launch_attention(b, device);
}

}  // namespace
}  // namespace int8_cuda

using namespace int8_cuda;

extern "C" int8_cuda_status int8_cuda_append_kv(const int8_cuda_append_kv_params *p) { return p == nullptr ? INT8_CUDA_INVALID : append_kv(*p); }

extern "C" int8_cuda_status int8_cuda_attention_workspace(const int8_cuda_attention_params *p, size_t *bytes) {
  if (p == nullptr || bytes == nullptr || !valid_attention_sizes(*p)) return INT8_CUDA_INVALID;
  *bytes = 0;
  if (p->cache.head_size > kMaxHeadSize) return INT8_CUDA_UNSUPPORTED;
  if (p->batch.rows == 0) return INT8_CUDA_OK;
  Device device;
  INT8_CUDA_PASS(current_device(&device));
  *bytes = decode_workspace(*p, device);
  return INT8_CUDA_OK;
}

extern "C" int8_cuda_status int8_cuda_attention(const int8_cuda_attention_params *p) { return p == nullptr ? INT8_CUDA_INVALID : attention(*p); }

extern "C" int8_cuda_status int8_cuda_append_and_attend(const int8_cuda_append_kv_params *append, const int8_cuda_attention_params *attention) {
  return append == nullptr || attention == nullptr ? INT8_CUDA_INVALID : append_and_attend(*append, *attention);
}
