// The next token of each row of logits.
#pragma once

#include "common/status.cuh"
#include "int8_cuda_model.h"

namespace int8_cuda {

// Bytes of the workspace; less for fewer rows.
uint64_t sample_bytes(int64_t rows, int64_t vocabulary);
int8_cuda_status launch_sample(const int8_cuda_sample_params &params, int multiprocessors, bool overlap);

}  // namespace int8_cuda
