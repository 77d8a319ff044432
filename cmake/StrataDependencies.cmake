# What is found, and what is replaced by a link-time stub where it is not.
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(TBB REQUIRED)
find_package(nlohmann_json 3.11 REQUIRED)
find_package(CLI11 REQUIRED)
find_package(fmt REQUIRED)
find_package(dnnl REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS CXX)
pkg_check_modules(LIBURING REQUIRED IMPORTED_TARGET liburing>=2.3)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(HWLOC REQUIRED IMPORTED_TARGET hwloc>=2.0)
pkg_check_modules(HWY REQUIRED IMPORTED_TARGET libhwy)

# CUDA: nvcc on PATH or under /usr/local/cuda.
option(STRATA_CUDA "Use the CUDA toolkit where it is found" ON)
set(STRATA_HAVE_CUDA OFF)
if(STRATA_CUDA)
  find_program(STRATA_NVCC nvcc HINTS /usr/local/cuda/bin)
  if(STRATA_NVCC)
    set(CMAKE_CUDA_COMPILER ${STRATA_NVCC})
    if(NOT CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 80 90)
    endif()
    enable_language(CUDA)
    set(CMAKE_CUDA_STANDARD 20)
    # CMake 3.25.1 does not know how nvcc spells C++20: tell it.
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    find_package(CUDAToolkit REQUIRED)
    set(STRATA_HAVE_CUDA ON)
  endif()
endif()

find_package(MPI COMPONENTS CXX QUIET)
find_path(STRATA_NCCL_INCLUDE nccl.h HINTS /usr/local/cuda/include)

message(STATUS "Strata: CUDA ${STRATA_HAVE_CUDA}, MPI ${MPI_CXX_FOUND}, NCCL ${STRATA_NCCL_INCLUDE}, "
               "parallel_for on ${STRATA_PARALLEL}")
