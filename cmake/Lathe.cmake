# lathe_library(NAME SRCS ... [DEPS ...] [TORCH])   one static library per module, alias lathe::NAME
# lathe_test(NAME SRCS ... [DEPS ...] [TORCH] [LABEL unit|slow] [ARGS ...])   one gtest program
#
# lathe_fuzz(NAME SRCS ... [DEPS ...] [SEEDS DIR] [DICTIONARY FILE])   one LLVMFuzzerTestOneInput
#                                                                  a libFuzzer program NAME with preset fuzz, else a test NAME that
#                                                                  replays seeds and mutations
#
# lathe_tested(TARGET...)   what `make test` builds: all test programs, and the programs that a test runs; target `tested`
#
# TORCH links LibTorch and reuses one precompiled header for ATen; everything else must build without it.

# ccache must be told that a precompiled header is only used as one, or it caches nothing that uses it; and to see the same paths
# in every clone. A launcher of the caller's own is left alone.
find_program(LATHE_CCACHE ccache)
if(LATHE_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros CCACHE_NOHASHDIR=1
      CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} ${LATHE_CCACHE})
  add_compile_options($<$<COMPILE_LANG_AND_ID:CXX,GNU>:-fpch-preprocess>)
endif()
find_program(LATHE_MOLD mold)
if(LATHE_MOLD)
  add_link_options(-fuse-ld=mold)
endif()

add_library(lathe_warnings INTERFACE)
# -Wrestrict: false positives on std::string concatenation in GCC 12.
target_compile_options(lathe_warnings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wno-missing-field-initializers -Werror>
  $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict>
  # nvcc passes on to the host compiler code of its own making, which -Wpedantic and -Wshadow would blame on us.
  $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings -Xcompiler=-Wall,-Wextra,-Wno-restrict,-Werror>)

function(lathe_use_torch target)
  target_link_libraries(${target} PUBLIC lathe::torch)
  target_precompile_headers(${target} REUSE_FROM lathe_torch_pch)
endfunction()

function(lathe_library name)
  cmake_parse_arguments(ARG "TORCH" "" "SRCS;DEPS;PRIVATE_DEPS" ${ARGN})
  set(target lathe_${name})
  add_library(${target} STATIC ${ARG_SRCS})
  add_library(lathe::${name} ALIAS ${target})
  target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR}/src)
  target_link_libraries(${target} PUBLIC ${ARG_DEPS} PRIVATE lathe_warnings ${ARG_PRIVATE_DEPS})
  if(ARG_TORCH)
    lathe_use_torch(${target})
  endif()
endfunction()

function(lathe_tested)
  set_property(GLOBAL APPEND PROPERTY LATHE_TESTED ${ARGN})
endfunction()

# Where speed does not matter: tests and the command line. A third less to compile than with -O3.
function(lathe_optimize_little target)
  target_compile_options(${target} PRIVATE $<$<AND:$<CONFIG:RelWithDebInfo>,$<COMPILE_LANGUAGE:CXX>>:-O1>)
endfunction()

function(lathe_test name)
  cmake_parse_arguments(ARG "TORCH" "LABEL;TIMEOUT" "SRCS;DEPS;ARGS" ${ARGN})
  if(NOT BUILD_TESTING)
    return()
  endif()
  if(NOT ARG_LABEL)
    set(ARG_LABEL unit)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gtest_main lathe_warnings)
  target_compile_definitions(${name} PRIVATE LATHE_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  lathe_optimize_little(${name})
  lathe_tested(${name})
  if(ARG_TORCH)
    lathe_use_torch(${name})
  endif()
  add_test(NAME ${name} COMMAND ${name} ${ARG_ARGS})
  set_tests_properties(${name} PROPERTIES LABELS ${ARG_LABEL} TIMEOUT ${ARG_TIMEOUT})
endfunction()

function(lathe_fuzz name)
  cmake_parse_arguments(ARG "" "SEEDS;DICTIONARY" "SRCS;DEPS" ${ARGN})
  foreach(path SEEDS DICTIONARY)
    if(ARG_${path})
      set(ARG_${path} ${CMAKE_CURRENT_SOURCE_DIR}/${ARG_${path}})
    endif()
  endforeach()
  if(LATHE_FUZZ)
    add_executable(${name} ${ARG_SRCS})
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    file(APPEND ${PROJECT_BINARY_DIR}/fuzz_targets.txt "${CMAKE_CURRENT_BINARY_DIR}/${name};${ARG_SEEDS};${ARG_DICTIONARY}\n")
    target_compile_definitions(${name} PRIVATE LATHE_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
    target_link_libraries(${name} PRIVATE ${ARG_DEPS} lathe_warnings)
  elseif(BUILD_TESTING)
    lathe_test(${name} SRCS ${ARG_SRCS} ${PROJECT_SOURCE_DIR}/tests/fuzz/replay_test.cpp DEPS ${ARG_DEPS})
    target_compile_definitions(${name} PRIVATE LATHE_FUZZ_SEEDS="${ARG_SEEDS}")
  endif()
endfunction()
