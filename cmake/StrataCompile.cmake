# Compile options that every target shares.
include(CheckCXXCompilerFlag)

add_library(strata_options INTERFACE)
# No contraction: the optimizer's bits must not depend on what the compiler fuses.
target_compile_options(strata_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wshadow=local;-Wnon-virtual-dtor;-Woverloaded-virtual;-ffp-contract=off>)
# Kernels share constexpr functions with the host.
target_compile_options(strata_options INTERFACE
  $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>)
if(STRATA_WERROR)
  target_compile_options(strata_options INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Werror>
    $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Wall,-Wextra,-Werror>)
endif()
target_include_directories(strata_options INTERFACE
  ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include)

# Freed buffers are filled with NaNs (kernels/device/poison.h).
if(STRATA_SANITIZE OR CMAKE_BUILD_TYPE STREQUAL "Debug")
  add_compile_definitions(STRATA_POISON)
endif()

if(STRATA_FEWER_ISAS)
  add_compile_definitions(STRATA_FEWER_ISAS)
endif()

if(STRATA_SANITIZE)
  add_compile_options($<$<COMPILE_LANGUAGE:C,CXX>:-fsanitize=${STRATA_SANITIZE}>
                      $<$<COMPILE_LANGUAGE:C,CXX>:-fno-omit-frame-pointer>)
  add_link_options(-fsanitize=${STRATA_SANITIZE})
endif()

# strata_library(NAME SOURCES ... DEPS ...): one folder, one static library.
function(strata_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC strata_options ${ARG_DEPS} PRIVATE ${ARG_PRIVATE_DEPS})
endfunction()
