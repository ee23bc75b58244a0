# The CUDA compiler and what a CUDA build links to. Output: the language CUDA, target lathe::cuda.
#
# The compiler is, first found: CMAKE_CUDA_COMPILER or CUDACXX, nvcc on the PATH, the cache's (scripts/fetch_libtorch.py --cuda).
# Linked are only libcudart and libc10_cuda (devices, streams, the caching allocator). LibTorch's kernels are loaded when a GPU is
# used (src/gpu/device.h), so that neither building nor starting needs cuBLAS and cuDNN (docs/decisions/0005-load-cuda-late.md).
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(LATHE_NVCC nvcc)
  if(NOT LATHE_NVCC)
    set(_cache "$ENV{LATHE_CACHE}")
    if(NOT _cache)
      set(_cache "$ENV{HOME}/.cache/lathe")
    endif()
    set(_nvcc "${_cache}/cuda-13.0-${CMAKE_HOST_SYSTEM_PROCESSOR}/nvidia/cu13/bin/nvcc")
    if(NOT EXISTS "${_nvcc}")
      message(FATAL_ERROR "no nvcc on the PATH and none in the cache; run 'make setup CUDA=1'")
    endif()
    set(LATHE_NVCC "${_nvcc}" CACHE FILEPATH "the CUDA compiler" FORCE)
  endif()
  set(CMAKE_CUDA_COMPILER "${LATHE_NVCC}")
endif()
# A100 and the cards that run its code (A10, RTX 30, L4, L40, RTX 40); H100 and H200 with their own instructions; PTX, which the
# driver compiles at first use, for what came later (Blackwell). Older cards have no bf16.
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES "80-real;90a-real;90-virtual")
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)  # LibTorch's; two run-times in one process would not see each other's streams
set(CMAKE_CUDA_FLAGS_RELWITHDEBINFO "-O3 --compress-mode=size")  # a tenth of the size that line numbers make
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)  # CMake 3.25 does not know that nvcc knows C++20
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 13.0 OR CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 14)
  message(FATAL_ERROR "LibTorch 2.11.0 is built with CUDA 13.0; ${CMAKE_CUDA_COMPILER} is ${CMAKE_CUDA_COMPILER_VERSION}")
endif()

if(NOT EXISTS "${LATHE_TORCH_ROOT}/torch/lib/libc10_cuda.so")
  message(FATAL_ERROR "LATHE_TORCH_ROOT='${LATHE_TORCH_ROOT}' holds no torch/lib/libc10_cuda.so: it is a torch without CUDA. "
    "Run 'make setup CUDA=1', or name the site-packages folder of a torch 2.11.0+cu130")
endif()
add_library(lathe_cuda INTERFACE)
add_library(lathe::cuda ALIAS lathe_cuda)
target_compile_definitions(lathe_cuda INTERFACE LATHE_CUDA=1)
target_include_directories(lathe_cuda SYSTEM INTERFACE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_link_libraries(lathe_cuda INTERFACE ${LATHE_TORCH_ROOT}/torch/lib/libc10_cuda.so
  ${LATHE_TORCH_ROOT}/nvidia/cu13/lib/libcudart.so.13)
