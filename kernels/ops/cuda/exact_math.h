// Arithmetic with one rounding an operation, in functions that a GPU's compiler and the host's both
// read: the same bits on both. A kernel's mathematics is written with it, so that it is tested
// where there is no GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/ops/cuda/element.h"
#include "kernels/ops/numeric.h"
#include "strata/dtype.h"

namespace strata::ops::exact {

// The host compiler is told not to contract (-ffp-contract=off); CUDA's intrinsics never do.
#ifdef __CUDA_ARCH__
__device__ inline float add(float a, float b) { return __fadd_rn(a, b); }
__device__ inline float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ inline float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline float div(float a, float b) { return __fdiv_rn(a, b); }
__device__ inline float sqrt(float a) { return __fsqrt_rn(a); }
__device__ inline double fma(double a, double b, double c) { return __fma_rn(a, b, c); }
__device__ inline uint32_t bits(float a) { return __float_as_uint(a); }
__device__ inline float from_bits(uint32_t a) { return __uint_as_float(a); }
#else
STRATA_HD inline float add(float a, float b) { return a + b; }
STRATA_HD inline float mul(float a, float b) { return a * b; }
STRATA_HD inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
STRATA_HD inline float div(float a, float b) { return a / b; }
STRATA_HD inline float sqrt(float a) { return std::sqrt(a); }
STRATA_HD inline double fma(double a, double b, double c) { return std::fma(a, b, c); }
STRATA_HD inline uint32_t bits(float a) {
  uint32_t result;
  std::memcpy(&result, &a, sizeof(result));
  return result;
}
STRATA_HD inline float from_bits(uint32_t a) {
  float result;
  std::memcpy(&result, &a, sizeof(result));
  return result;
}
#endif

STRATA_HD inline uint32_t magnitude_bits(float x) { return bits(x) & 0x7fff'ffff; }
STRATA_HD inline bool is_nan(float x) { return magnitude_bits(x) > 0x7f80'0000; }
// The one NaN of training state: positive, quiet, without payload.
STRATA_HD inline float one_nan(float x) { return is_nan(x) ? from_bits(0x7fc0'0000) : x; }
STRATA_HD inline float flush_denormal(float x) { return (bits(x) & 0x7f80'0000) == 0 ? 0.0f : x; }

// Element i of an array of a floating-point dtype, as kernels/ops/numeric.h widens it.
STRATA_HD inline float load(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::bf16:
      return from_bits(static_cast<uint32_t>(static_cast<const uint16_t*>(data)[i]) << 16);
    case DType::fp16:
      return fp16_to_float(static_cast<const uint16_t*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

// Of training state: bf16 half away from zero, fp16 to nearest even; `x` went through one_nan().
STRATA_HD inline void store_param(float x, void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::bf16:
      static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>((bits(x) + 0x8000) >> 16);
      return;
    case DType::fp16:
      static_cast<uint16_t*>(data)[i] = float_to_fp16(x);
      return;
    default:
      static_cast<float*>(data)[i] = x;
  }
}

}  // namespace strata::ops::exact
