# What `cmake --install BUILD --prefix PREFIX` puts where (docs/operations.md says what to do with it):
#
#   bin/lathe, bin/lathe-torch            the programs, side by side
#   lib/lathe/torch/lib, .../nvidia/...   LibTorch's libraries in the layout of its wheel (component torch)
#   lib/systemd/system/                   units, with PREFIX written into them
#   share/lathe/lathe_vllm                the plugin for vLLM, for pip to install
#   share/doc/lathe                       the pages, licence and changes
#
# The programs look for LibTorch at ../lib/lathe from where they are, so PREFIX may be moved or copied to another machine. A CUDA build
# needs the complete torch that it was built with, which is 3 GB: with LATHE_INSTALL_TORCH=OFF, its default there, nothing of it
# is copied and LATHE_TORCH_ROOT is looked up as well; a link from lib/lathe to such a folder comes first.
include(GNUInstallDirs)
if(LATHE_CUDA)
  set(_copy OFF)
else()
  set(_copy ON)
endif()
option(LATHE_INSTALL_TORCH "Install LibTorch's libraries beside the programs" ${_copy})

set(_home ${CMAKE_INSTALL_LIBDIR}/lathe)
file(RELATIVE_PATH _from_bin /${CMAKE_INSTALL_BINDIR} /${_home})
set(_rpath "$ORIGIN/${_from_bin}/torch/lib" "$ORIGIN/${_from_bin}/nvidia/cu13/lib")
if(NOT LATHE_INSTALL_TORCH)
  list(APPEND _rpath ${LATHE_TORCH_ROOT}/torch/lib ${LATHE_TORCH_ROOT}/nvidia/cu13/lib)
endif()
set_target_properties(lathe-torch PROPERTIES INSTALL_RPATH "${_rpath}")
install(TARGETS lathe lathe-torch COMPONENT programs)
if(LATHE_INSTALL_TORCH)
  foreach(folder torch/lib nvidia/cu13/lib)
    install(DIRECTORY ${LATHE_TORCH_ROOT}/${folder}/ DESTINATION ${_home}/${folder} COMPONENT torch
      FILES_MATCHING PATTERN "*.so*" PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
  endforeach()
  file(GLOB _licences ${LATHE_TORCH_ROOT}/torch-*.dist-info ${LATHE_TORCH_ROOT}/nvidia_cuda_*.dist-info)
  install(DIRECTORY ${_licences} DESTINATION ${CMAKE_INSTALL_DOCDIR}/licences COMPONENT torch)
endif()

# The units name the programs by their full path, which is known when installing: --prefix may differ from configuring.
file(GLOB _units ${PROJECT_SOURCE_DIR}/packaging/*.in)
install(CODE "set(lathe_units \"${_units}\")\nset(lathe_bin \"${CMAKE_INSTALL_BINDIR}\")" COMPONENT programs)
install(SCRIPT ${PROJECT_SOURCE_DIR}/packaging/install_units.cmake COMPONENT programs)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/python/lathe_vllm DESTINATION ${CMAKE_INSTALL_DATADIR}/lathe COMPONENT plugin
  PATTERN "tests" EXCLUDE PATTERN "__pycache__" EXCLUDE PATTERN "build" EXCLUDE PATTERN "*.egg-info" EXCLUDE)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/docs DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT docs)
install(FILES README.md CHANGELOG.md LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT docs)
