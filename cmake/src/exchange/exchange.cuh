// What ranks exchange. Launches.
#pragma once

#include "common/status.cuh"
#include "int8_cuda_exchange.h"

namespace int8_cuda {

int8_cuda_status launch_exchange_sum(const int8_cuda_exchange_sum_params &params, const Device &device);
// The function of a few rows of 16-bit values, and their ranges, in one kernel.
bool small_ranges_support(const int8_cuda_exchange_ranges_params &params);
int8_cuda_status launch_small_ranges(const int8_cuda_exchange_ranges_params &params, bool by_column, const Device &device);
// The ranges of x as it is. mask: u32 [ceil(k/32)], the outlier columns, or null: each value counts or not by itself.
int8_cuda_status launch_exchange_ranges(const int8_cuda_exchange_ranges_params &params, const uint32_t *mask, const Device &device);
int8_cuda_status launch_exchange_columns(const int8_cuda_exchange_columns_params &params, const Device &device);
int8_cuda_status launch_slice(const int8_cuda_slice_params &params);

}  // namespace int8_cuda
