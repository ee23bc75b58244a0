# Run by `cmake --install` (cmake/Install.cmake): writes the systemd units with the programs' folder in them.
set(bin "${CMAKE_INSTALL_PREFIX}/${lathe_bin}")
foreach(unit ${lathe_units})
  get_filename_component(name ${unit} NAME_WLE)
  configure_file(${unit} "$ENV{DESTDIR}${CMAKE_INSTALL_PREFIX}/lib/systemd/system/${name}" @ONLY)
endforeach()
