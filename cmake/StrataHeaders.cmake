# strata_self_contained_headers(NAME FOLDERS ... [LIBRARIES ...]): an object library with one source
# for each header, which includes that header alone, twice. A header that leans on its includer, or
# lacks its guard, breaks the build.
#
# FOLDERS are searched through, relative to the project. LIBRARIES are what the headers themselves
# include. CUDA's headers (.cuh) are read by the host compiler, where the toolkit is; Highway's -inl.h
# files, which exist once for each target, and -inl.cuh files, which are device code, are left out.
function(strata_self_contained_headers name)
  cmake_parse_arguments(ARG "" "" "FOLDERS;LIBRARIES" ${ARGN})
  set(patterns)
  foreach(folder IN LISTS ARG_FOLDERS)
    list(APPEND patterns ${PROJECT_SOURCE_DIR}/${folder}/*.h)
    if(STRATA_HAVE_CUDA)
      list(APPEND patterns ${PROJECT_SOURCE_DIR}/${folder}/*.cuh)
    endif()
  endforeach()
  file(GLOB_RECURSE headers RELATIVE ${PROJECT_SOURCE_DIR} CONFIGURE_DEPENDS ${patterns})
  list(FILTER headers EXCLUDE REGEX "-inl\\.(h|cuh)$")

  set(sources)
  foreach(header IN LISTS headers)
    string(REGEX REPLACE "^include/" "" spelled ${header})
    set(source ${CMAKE_CURRENT_BINARY_DIR}/${name}/${header}.cc)
    file(CONFIGURE OUTPUT ${source} CONTENT "#include \"${spelled}\"\n#include \"${spelled}\"\n")
    list(APPEND sources ${source})
  endforeach()

  add_library(${name} OBJECT ${sources})
  target_link_libraries(${name} PRIVATE strata_include ${ARG_LIBRARIES})
  # Only the front end matters here.
  target_compile_options(${name} PRIVATE -O0 -g0)
endfunction()
