# lathe_cargo(CRATE_DIR LIBRARY): builds a Rust static library with cargo and offers it as imported target lathe::LIBRARY.
# Build products go to ${LATHE_CARGO_TARGET} (default: inside the build folder).
function(lathe_cargo crate library)
  set(directory ${PROJECT_SOURCE_DIR}/rust/${crate})
  if(NOT LATHE_CARGO_TARGET)
    set(LATHE_CARGO_TARGET ${PROJECT_BINARY_DIR}/cargo)
  endif()
  find_program(LATHE_CARGO cargo REQUIRED)
  set(archive ${LATHE_CARGO_TARGET}/release/lib${library}.a)
  file(GLOB sources CONFIGURE_DEPENDS ${directory}/src/*.rs)
  add_custom_command(
    OUTPUT ${archive}
    COMMAND ${CMAKE_COMMAND} -E env CARGO_TARGET_DIR=${LATHE_CARGO_TARGET} ${LATHE_CARGO} build --release --locked --quiet
    WORKING_DIRECTORY ${directory}
    DEPENDS ${sources} ${directory}/Cargo.toml ${directory}/Cargo.lock
    COMMENT "Building Rust library ${library}"
    USES_TERMINAL)
  add_custom_target(${library}_build DEPENDS ${archive})
  add_library(${library} INTERFACE)
  add_dependencies(${library} ${library}_build)
  target_include_directories(${library} SYSTEM INTERFACE ${directory})
  # dl, m and pthread are what Rust's standard library asks for; stdc++ is Oniguruma's neighbour in the same archive.
  target_link_libraries(${library} INTERFACE ${archive} Threads::Threads ${CMAKE_DL_LIBS} m)
  add_library(lathe::${library} ALIAS ${library})
endfunction()
