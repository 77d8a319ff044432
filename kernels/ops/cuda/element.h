// Elements of each dtype, one at a time, for CUDA kernels and for the host's compiler: what a
// kernel computes for an element can be tested without a GPU.
//
// The roundings are those of kernels/ops/numeric.h. On a device the hardware's own conversions do
// them, which make any NaN the canonical one.
#pragma once

#include <cstdint>

#include "kernels/ops/numeric.h"
#include "strata/dtype.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define STRATA_HD __host__ __device__
#else
#define STRATA_HD
#endif

namespace strata::ops::cuda {

struct Fp32 {
  using Stored = float;
  STRATA_HD static float widen(float x) { return x; }
  STRATA_HD static float narrow(float x) { return x; }
};

struct Bf16 {
  using Stored = uint16_t;
  STRATA_HD static float widen(uint16_t x) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(static_cast<uint32_t>(x) << 16);
#else
    return bf16_to_float(x);
#endif
  }
  STRATA_HD static uint16_t narrow(float x) {
#ifdef __CUDA_ARCH__
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
    return float_to_bf16_half_even(x);
#endif
  }
};

struct Fp16 {
  using Stored = uint16_t;
  STRATA_HD static float widen(uint16_t x) {
#ifdef __CUDA_ARCH__
    return __half2float(__ushort_as_half(x));
#else
    return fp16_to_float(x);
#endif
  }
  STRATA_HD static uint16_t narrow(float x) {
#ifdef __CUDA_ARCH__
    return __half_as_ushort(__float2half_rn(x));
#else
    return float_to_fp16(x);
#endif
  }
};

// Calls body(Element()) for the element type of a float `dtype`.
template <typename Body>
void with_element(DType dtype, const Body& body) {
  if (dtype == DType::bf16) return body(Bf16());
  if (dtype == DType::fp16) return body(Fp16());
  body(Fp32());
}

}  // namespace strata::ops::cuda
