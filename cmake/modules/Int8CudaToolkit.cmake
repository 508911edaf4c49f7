# Finds nvcc before project() does: CUDA_PATH first, then nvcc on the PATH, then /usr/local/cuda.
if(NOT CMAKE_CUDA_COMPILER)
  find_program(INT8_NVCC nvcc HINTS "$ENV{CUDA_PATH}/bin" PATHS /usr/local/cuda/bin /opt/cuda/bin NO_CACHE)
  if(INT8_NVCC)
    set(CMAKE_CUDA_COMPILER "${INT8_NVCC}" CACHE FILEPATH "CUDA compiler")
  else()
    message(FATAL_ERROR "no CUDA compiler: set CUDA_PATH to a CUDA 13.0 toolkit, or make a private one with "
      "`cargo xtask cuda-toolkit`")
  endif()
endif()
