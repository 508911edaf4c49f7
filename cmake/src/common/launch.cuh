// Launches, and programmatic dependent launch (PDL).
#pragma once

#include "common/status.cuh"
#include "common/types.cuh"

namespace int8_cuda {

// PDL (sm_90): pdl_trigger lets the next kernel of the stream start once all blocks of this one have called it or ended;
// pdl_wait waits until the kernel before, and so all before it, has ended and its writes are visible. Every kernel but
// int8_cuda_append_and_attend's triggers first, so that before its own wait any number of kernels before it may still be running: it reads nothing then that they
// write, and writes nothing. That leaves weights, which no kernel writes, and in int8_cuda_append_and_attend the arrays that
// only copies between forwards write (positions, sequences, page tables), and the keys and values of earlier forwards: a copy,
// as the start of a graph, waits for all kernels before it, and the kernel behind it, which is no dependent launch, for the
// copy. At least one block of every grid waits, or "all before it" would not hold. One exception: in int8_cuda_linear the
// single-pass prologue increments its work counter before its wait, so the wgmma kernel, which zeroes that counter, has its
// block 0 do so before it triggers.
__device__ __forceinline__ void pdl_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void pdl_trigger() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// A launch configuration. `overlap`: PDL, the kernel calls pdl_wait() before it reads what the kernel before wrote.
struct Launch {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attributes[2]{};
  Launch(dim3 grid, dim3 block, size_t shared, cudaStream_t stream, bool overlap, int cluster = 1) {
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = attributes;
    if (overlap) {
      attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
      attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes[config.numAttrs].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
      ++config.numAttrs;
    }
  }
};

// Raises a kernel's limit of dynamic shared memory (48 KB by default). Always to the same value for a kernel: other threads
// may be launching it.
template <typename Kernel>
cudaError_t allow_shared(Kernel kernel, size_t bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

}  // namespace int8_cuda
