// int8_cuda_abi_table: sizes and offsets of the public structs as the C++ compiler sees them.
#include <cstddef>

#include "int8_cuda_exchange.h"
#include "int8_cuda_model.h"

namespace {

#define AT(type, field) offsetof(type, field)
constexpr uint64_t kTable[] = {
    sizeof(int8_cuda_device_info),      AT(int8_cuda_device_info, l2_bytes),       AT(int8_cuda_device_info, name),
    sizeof(int8_cuda_quantize_params),  AT(int8_cuda_quantize_params, stream),     AT(int8_cuda_quantize_params, rows),
    AT(int8_cuda_quantize_params, element), AT(int8_cuda_quantize_params, threshold),
    sizeof(int8_cuda_linear_params),    AT(int8_cuda_linear_params, exact),        AT(int8_cuda_linear_params, stream),
    AT(int8_cuda_linear_params, m),     AT(int8_cuda_linear_params, exact_stride_c), AT(int8_cuda_linear_params, element),
    AT(int8_cuda_linear_params, threshold), AT(int8_cuda_linear_params, algorithm), AT(int8_cuda_linear_params, store),
    AT(int8_cuda_linear_params, y_element), AT(int8_cuda_linear_params, transform),
    sizeof(int8_cuda_activations),      AT(int8_cuda_activations, outlier_values), AT(int8_cuda_activations, ldq),
    AT(int8_cuda_activations, rule),
    sizeof(int8_cuda_prologue_params),  AT(int8_cuda_prologue_params, ldx),        AT(int8_cuda_prologue_params, threshold),
    AT(int8_cuda_prologue_params, activations),
    sizeof(int8_cuda_gemm_params),      AT(int8_cuda_gemm_params, y),              AT(int8_cuda_gemm_params, n),
    AT(int8_cuda_gemm_params, store),   AT(int8_cuda_gemm_params, y_element), AT(int8_cuda_gemm_params, activations),
    sizeof(int8_cuda_gemm_layout),      AT(int8_cuda_gemm_layout, algorithm),
    sizeof(int8_cuda_linear_layout),    AT(int8_cuda_linear_layout, outlier_columns), AT(int8_cuda_linear_layout, ldq),
    AT(int8_cuda_linear_layout, algorithm),
    sizeof(int8_cuda_product_params),   AT(int8_cuda_product_params, stream),      AT(int8_cuda_product_params, m),
    AT(int8_cuda_product_params, algorithm),
    sizeof(int8_cuda_dequantize_params), AT(int8_cuda_dequantize_params, stream),  AT(int8_cuda_dequantize_params, element),
    sizeof(int8_cuda_gradient_params),  AT(int8_cuda_gradient_params, dx),         AT(int8_cuda_gradient_params, element),
    sizeof(int8_cuda_dense_params),     AT(int8_cuda_dense_params, m),             AT(int8_cuda_dense_params, candidate),
    sizeof(int8_cuda_transform), AT(int8_cuda_transform, function), AT(int8_cuda_transform, reserved),
    sizeof(int8_cuda_transform_params), AT(int8_cuda_transform_params, rows), AT(int8_cuda_transform_params, x_element), AT(int8_cuda_transform_params, transform),
    sizeof(int8_cuda_gather_params), AT(int8_cuda_gather_params, out), AT(int8_cuda_gather_params, offset), AT(int8_cuda_gather_params, store),
    sizeof(int8_cuda_scatter_add_params), AT(int8_cuda_scatter_add_params, rows),
    sizeof(int8_cuda_kv_cache), AT(int8_cuda_kv_cache, layers), AT(int8_cuda_kv_cache, kv_heads), AT(int8_cuda_kv_cache, element),
    sizeof(int8_cuda_batch), AT(int8_cuda_batch, segment_starts), AT(int8_cuda_batch, rows),
    sizeof(int8_cuda_append_kv_params), AT(int8_cuda_append_kv_params, ld), AT(int8_cuda_append_kv_params, heads), AT(int8_cuda_append_kv_params, cache), AT(int8_cuda_append_kv_params, batch),
    sizeof(int8_cuda_attention_params), AT(int8_cuda_attention_params, ldq), AT(int8_cuda_attention_params, heads), AT(int8_cuda_attention_params, softcap), AT(int8_cuda_attention_params, cache), AT(int8_cuda_attention_params, batch),
    sizeof(int8_cuda_float_linear_params), AT(int8_cuda_float_linear_params, m), AT(int8_cuda_float_linear_params, element), AT(int8_cuda_float_linear_params, store),
    sizeof(int8_cuda_sampler), AT(int8_cuda_sampler, temperature), AT(int8_cuda_sampler, top_k),
    sizeof(int8_cuda_sample_params), AT(int8_cuda_sample_params, tokens), AT(int8_cuda_sample_params, rows), AT(int8_cuda_sample_params, ld),
    sizeof(int8_cuda_signals), AT(int8_cuda_signals, receive), AT(int8_cuda_signals, failed), AT(int8_cuda_signals, ranks),
    sizeof(int8_cuda_exchange_sum_params), AT(int8_cuda_exchange_sum_params, parts), AT(int8_cuda_exchange_sum_params, out), AT(int8_cuda_exchange_sum_params, store),
    sizeof(int8_cuda_exchange_ranges_params), AT(int8_cuda_exchange_ranges_params, x), AT(int8_cuda_exchange_ranges_params, rows), AT(int8_cuda_exchange_ranges_params, threshold), AT(int8_cuda_exchange_ranges_params, transform),
    sizeof(int8_cuda_exchange_columns_params), AT(int8_cuda_exchange_columns_params, out), AT(int8_cuda_exchange_columns_params, widths),
    sizeof(int8_cuda_slice_params), AT(int8_cuda_slice_params, code_sums), AT(int8_cuda_slice_params, n), AT(int8_cuda_slice_params, ldo),
};

}  // namespace

extern "C" const uint64_t *int8_cuda_abi_table(size_t *count) {
  *count = sizeof kTable / sizeof kTable[0];
  return kTable;
}
