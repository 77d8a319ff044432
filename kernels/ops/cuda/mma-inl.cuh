// Tensor cores and shared memory of sm_80 and later, in the words of the PTX manual ("Matrix
// fragments for mma.m16n8k16 with floating point type", "ldmatrix", "cp.async"). Device code: only
// nvcc reads it.
//
// With g = lane / 4 and t = lane % 4, a lane holds of
//   A (16 x 16): rows g, g + 8, g, g + 8, columns 2t, 2t, 2t + 8, 2t + 8, and the column behind
//   each; B (16 x 8):  column g, rows 2t and 2t + 8, and the row behind each; C (16 x 8):  (g, 2t),
//   (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1), fp32.
#pragma once

#include <cstdint>

#include "kernels/ops/cuda/element.h"

namespace strata::ops::cuda {

using FragmentA = uint32_t[4];
using FragmentB = uint32_t[2];
using FragmentC = float[4];

// Two numbers rounded to nearest even, `low` in the lower half.
template <typename Element>
__device__ __forceinline__ uint32_t pack_pair(float low, float high);

template <>
__device__ __forceinline__ uint32_t pack_pair<Bf16>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

template <>
__device__ __forceinline__ uint32_t pack_pair<Fp16>(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// c += a . b
template <typename Element>
__device__ __forceinline__ void multiply_add(FragmentC& c, const FragmentA& a, const FragmentB& b);

template <>
__device__ __forceinline__ void multiply_add<Bf16>(FragmentC& c, const FragmentA& a,
                                                   const FragmentB& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ __forceinline__ void multiply_add<Fp16>(FragmentC& c, const FragmentA& a,
                                                   const FragmentB& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Four 8 x 8 matrices from shared memory. Lane l gives the address of row l % 8 of matrix l / 8,
// and gets of each matrix row g, columns 2t and 2t + 1; transposed, column g, rows 2t and 2t + 1.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const uint16_t* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[4], const uint16_t* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}

// 16 bytes, both sides aligned to them, without waiting; zeros where not `valid`. `from` is a
// readable address either way.
__device__ __forceinline__ void copy_async(void* shared, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(from)),
                 "r"(valid ? 16 : 0)
               : "memory");
}
// For the calling thread's copies; the others see them behind a __syncthreads().
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// 2^x to two units in the last place; results below 2^-126 are zero. NaN stays NaN.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace strata::ops::cuda
