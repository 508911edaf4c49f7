# Finds nvcc before project() asks for it: CUDA_PATH wins, then nvcc on the PATH, then /usr/local/cuda. Everything that is
# missing is reported at once.
if(NOT CMAKE_CUDA_COMPILER)
  find_program(INT8_NVCC nvcc HINTS "$ENV{CUDA_PATH}/bin" PATHS /usr/local/cuda/bin /opt/cuda/bin NO_CACHE)
  if(INT8_NVCC)
    set(CMAKE_CUDA_COMPILER "${INT8_NVCC}" CACHE FILEPATH "CUDA compiler")
  else()
    message(FATAL_ERROR "no CUDA compiler: set CUDA_PATH to a CUDA 13.0 toolkit, or make a private one with "
      "`cargo xtask cuda-toolkit`")
  endif()
endif()
