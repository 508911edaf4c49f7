// Which kernels make the prologue.
#include "prologue/prologue.cuh"

#include "prologue/single_pass.cuh"

namespace int8_cuda {

int8_cuda_status launch_prologue(const PrologueParams &p, const Device &device, cudaStream_t stream, bool *single_pass) {
  *single_pass = single_pass_supports(p, device);
  return *single_pass ? launch_single_pass(p, stream, device.multiprocessors) : launch_quantize_rows(p, stream, device.major >= 9);
}

}  // namespace int8_cuda
