// Rows before and between a model's layers: functions of rows, and rows of tables.
#pragma once

#include "common/status.cuh"
#include "int8_cuda_model.h"

namespace int8_cuda {

// rows, groups and k above 0; arguments validated.
int8_cuda_status launch_transform(const int8_cuda_transform_params &params, bool overlap);
int8_cuda_status launch_gather(const int8_cuda_gather_params &params, bool overlap);

}  // namespace int8_cuda
