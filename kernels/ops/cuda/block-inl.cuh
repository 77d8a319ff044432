// Reductions over a block of threads, in a fixed order. Device code: only nvcc reads it.
#pragma once

#include <cstdint>

#include "kernels/ops/cuda/pack-inl.cuh"

namespace strata::ops::cuda {

// combine(a, b) over the block's values, thread 0's first: a tree of fixed shape. The result in
// every thread. All threads of the block call it; kThreads is a power of two.
template <int kThreads, typename Value, typename Combine>
__device__ Value block_reduce(const Value& own, const Combine& combine) {
  static_assert((kThreads & (kThreads - 1)) == 0);
  // Bytes: shared memory runs no constructor.
  alignas(Value) __shared__ unsigned char bytes[kThreads * sizeof(Value)];
  auto* values = reinterpret_cast<Value*>(bytes);
  values[threadIdx.x] = own;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) {
      values[threadIdx.x] = combine(values[threadIdx.x], values[threadIdx.x + half]);
    }
  }
  __syncthreads();
  const Value all = values[0];
  __syncthreads();  // the next call may write
  return all;
}

}  // namespace strata::ops::cuda
