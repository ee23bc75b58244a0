# lathe_cargo(CRATE LIBRARY)   builds the static library of rust/CRATE as target lathe::LIBRARY, and adds the crate's tests
#
# The archive goes to the build folder. What cargo makes on the way (two minutes' worth of other people's crates) goes to the
# cache, where every clone and build folder finds it again; cargo keeps versions apart. Cargo before 1.91 knows one
# folder only and builds everything in the build folder.
find_program(LATHE_CARGO cargo)

function(lathe_cargo crate library)
  if(NOT LATHE_CARGO)
    message(FATAL_ERROR "cargo is not on the PATH; scripts/setup.sh installs it")
  endif()
  set(cache "$ENV{LATHE_CACHE}")
  if(NOT cache)
    set(cache "$ENV{HOME}/.cache/lathe")
  endif()
  set(directory ${PROJECT_SOURCE_DIR}/rust/${crate})
  set(target ${PROJECT_BINARY_DIR}/cargo)
  set(archive ${target}/release/lib${library}.a)
  set(cargo ${CMAKE_COMMAND} -E env CARGO_TARGET_DIR=${target} CARGO_BUILD_BUILD_DIR=${cache}/cargo ${LATHE_CARGO})
  # Cargo names what it builds by the crate's path within its workspace, which is the same in every clone, and asks only
  # whether the sources are older: without a name of its own a clone gets the library of whichever built last.
  string(SHA1 clone ${directory})
  string(SUBSTRING ${clone} 0 16 clone)
  file(GLOB sources CONFIGURE_DEPENDS ${directory}/src/*.rs)
  add_custom_command(
    OUTPUT ${archive}
    COMMAND ${cargo} rustc --release --locked --quiet --lib -- -C metadata=${clone}
    COMMAND ${CMAKE_COMMAND} -E touch ${archive}  # it may come from the cache, older than the sources
    WORKING_DIRECTORY ${directory}
    DEPENDS ${sources} ${directory}/Cargo.toml ${directory}/Cargo.lock
    COMMENT "Building Rust library ${library} (up to two minutes the first time)")
  add_custom_target(${library}_build DEPENDS ${archive})
  add_library(${library} INTERFACE)
  add_dependencies(${library} ${library}_build)
  target_include_directories(${library} SYSTEM INTERFACE ${directory})
  # What Rust's standard library asks for.
  target_link_libraries(${library} INTERFACE ${archive} Threads::Threads ${CMAKE_DL_LIBS} m)
  add_library(lathe::${library} ALIAS ${library})
  if(BUILD_TESTING)
    add_test(NAME ${library}_test COMMAND ${cargo} test --release --locked --quiet WORKING_DIRECTORY ${directory})
    set_tests_properties(${library}_test PROPERTIES LABELS unit TIMEOUT 300)
  endif()
endfunction()
