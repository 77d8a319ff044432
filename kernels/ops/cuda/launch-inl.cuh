// Launching kernels, and memory that a block shares. Device code: only nvcc reads it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/device/cuda_error.cuh"

namespace strata::ops::cuda {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Launch {
  int64_t blocks = 0;
  int64_t blocks_y = 1;  // at most 65535
  dim3 threads = 1;
  size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
};

// Enqueues kernel(args...). Nothing where there is no block to run. Throws DeviceError.
template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), const Launch& where, const Args&... args) {
  constexpr size_t kSharedWithoutAsking = size_t{48} << 10;
  if (where.blocks == 0 || where.blocks_y == 0) return;
  if (where.shared_bytes > kSharedWithoutAsking) {
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(where.shared_bytes)),
               "asking for shared memory");
  }
  const dim3 grid(static_cast<unsigned>(where.blocks), static_cast<unsigned>(where.blocks_y));
  kernel<<<grid, where.threads, where.shared_bytes, where.stream>>>(args...);
  check_cuda(cudaGetLastError(), "launching a kernel");
}

// The block's shared_bytes, aligned to 16 bytes.
__device__ inline void* block_memory() {
  extern __shared__ uint4 memory[];
  return memory;
}

}  // namespace strata::ops::cuda
