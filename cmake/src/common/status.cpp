// Errors of this thread, and the current device's properties.
#include "common/status.cuh"

#include <cstring>

namespace int8_cuda {
namespace {

thread_local char device_error[256] = "no error";

void keep_error(const char *name, const char *text) {
  std::strncpy(device_error, name, sizeof device_error - 1);
  const size_t used = std::strlen(device_error);
  std::strncpy(device_error + used, ": ", sizeof device_error - 1 - used);
  std::strncpy(device_error + std::strlen(device_error), text, sizeof device_error - 1 - std::strlen(device_error));
}

}  // namespace

int8_cuda_status device_status(cudaError_t error) {
  if (error == cudaSuccess) return INT8_CUDA_OK;
  cudaGetLastError();  // a reported launch error must not surface again in another call
  keep_error(cudaGetErrorName(error), cudaGetErrorString(error));
  return INT8_CUDA_DEVICE;
}

int8_cuda_status driver_status(int error) {
  if (error == 0) return INT8_CUDA_OK;
  keep_error("cuTensorMapEncodeTiled", "refused a tensor map");
  return INT8_CUDA_DEVICE;
}

const char *last_device_error() { return device_error; }

int8_cuda_status current_device(Device *device) {
  // One slot a device. Threads that fill it at the same time write the same.
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

}  // namespace int8_cuda
