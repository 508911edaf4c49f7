// Statuses: a CUDA error is kept for this thread and becomes INT8_CUDA_DEVICE.
#pragma once

#include <cuda_runtime.h>

#include "int8_cuda.h"

namespace int8_cuda {

int8_cuda_status device_status(cudaError_t error);
int8_cuda_status driver_status(int error);
// The error of this thread's last INT8_CUDA_DEVICE.
const char *last_device_error();

#define INT8_CUDA_TRY(expression)                                   \
  do {                                                              \
    const cudaError_t error_ = (expression);                        \
    if (error_ != cudaSuccess) return ::int8_cuda::device_status(error_); \
  } while (0)

#define INT8_CUDA_PASS(expression)                          \
  do {                                                      \
    const int8_cuda_status status_ = (expression);          \
    if (status_ != INT8_CUDA_OK) return status_;            \
  } while (0)

// Properties by which kernels are chosen; read once a device, then cached.
struct Device {
  int major, minor, multiprocessors;
};
int8_cuda_status current_device(Device *device);

}  // namespace int8_cuda
