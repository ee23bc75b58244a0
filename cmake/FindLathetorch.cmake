# LibTorch from the pip wheel, without TorchConfig.cmake: that file pulls in CUDA, which a CPU set-up does not have.
# Input: LATHE_TORCH_ROOT, the folder that holds torch/ and nvidia/: as a CMake variable, from the environment, or where
# scripts/fetch_libtorch.py leaves it. Output: target lathe::torch.
if(NOT LATHE_TORCH_ROOT)
  if(DEFINED ENV{LATHE_TORCH_ROOT})
    set(LATHE_TORCH_ROOT "$ENV{LATHE_TORCH_ROOT}")
  else()
    set(_cache "$ENV{LATHE_CACHE}")
    if(NOT _cache)
      set(_cache "$ENV{HOME}/.cache/lathe")
    endif()
    set(_variant "2.11.0")
    if(LATHE_CUDA)
      set(_variant "2.11.0-cuda")
    endif()
    set(LATHE_TORCH_ROOT "${_cache}/libtorch-${_variant}-${CMAKE_HOST_SYSTEM_PROCESSOR}")
  endif()
endif()
if(NOT LATHE_TORCH_ROOT OR NOT EXISTS "${LATHE_TORCH_ROOT}/torch/lib/libtorch_cpu.so")
  message(FATAL_ERROR "LATHE_TORCH_ROOT='${LATHE_TORCH_ROOT}' holds no torch/lib/libtorch_cpu.so. "
    "Run 'make setup', or configure with -DLATHE_TORCH=OFF to build only the torch-free modules.")
endif()
set(_torch ${LATHE_TORCH_ROOT}/torch)
add_library(lathe_torch INTERFACE)
add_library(lathe::torch ALIAS lathe_torch)
target_include_directories(lathe_torch SYSTEM INTERFACE ${_torch}/include ${_torch}/include/torch/csrc/api/include)
target_link_directories(lathe_torch INTERFACE ${_torch}/lib)
target_link_libraries(lathe_torch INTERFACE ${_torch}/lib/libtorch_cpu.so ${_torch}/lib/libc10.so)
# libtorch_cpu.so carries its own RPATH to libcudart and libcupti; the linker needs to see them once.
file(GLOB _cu_lib_dirs ${LATHE_TORCH_ROOT}/nvidia/*/lib)
foreach(_dir ${_cu_lib_dirs})
  target_link_options(lathe_torch INTERFACE -Wl,-rpath-link,${_dir})
endforeach()
# at::parallel_for is a template over OpenMP: without this flag it silently runs on one thread. The wheel brings the run-time.
target_compile_options(lathe_torch INTERFACE -fopenmp)
target_link_libraries(lathe_torch INTERFACE ${_torch}/lib/libgomp.so.1)
# The wheel is built with the new libstdc++ ABI.
target_compile_definitions(lathe_torch INTERFACE _GLIBCXX_USE_CXX11_ABI=1)

file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/torch_pch.cpp CONTENT "// Exists only so that the precompiled header has a home.\n")
add_library(lathe_torch_pch STATIC ${PROJECT_BINARY_DIR}/torch_pch.cpp)
target_link_libraries(lathe_torch_pch PUBLIC lathe_torch PRIVATE lathe_warnings)
target_precompile_headers(lathe_torch_pch PRIVATE <ATen/ATen.h> <torch/csrc/autograd/custom_function.h> <torch/csrc/autograd/autograd.h> <vector> <string> <memory>)
