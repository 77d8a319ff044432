// Element-wise arithmetic on training state: the fused update, gradient landing, casts.
//
// One Highway source, the instruction set chosen at run time. STRATA_FORCE_ISA=scalar|sse4|avx2|
// avx512 (or neon and others by Highway's names) restricts it. The same bits come out for every
// instruction set, slice start and number of threads: explicit FMA, IEEE division and root, our
// own integer rounding, and one flush of denormal moments to zero.
//
// Calls run on the calling thread's team (kernels/device/thread_team.h). Spans have the same
// length, do not overlap unless said, and need only their element's alignment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "strata/dtype.h"

namespace strata::ops {

// Scalars of one AdamW step for elements that share one optimizer setting.
//
//   g' = g * grad_scale
//   p  = p - lr * weight_decay * p                          (decoupled; Loshchilov & Hutter 2019)
//   m  = beta1 * m + (1 - beta1) * g',  v = beta2 * v + (1 - beta2) * g'^2     (Kingma & Ba 2015)
//   p  = p - (lr / bias_correction1) * m / (sqrt(v) / sqrt(bias_correction2) + eps)
struct AdamWScalars {
  float lr = 0;
  float beta1 = 0.9f;
  float beta2 = 0.999f;
  float eps = 1e-8f;
  float weight_decay = 0;
  float grad_scale = 1;         // unscale, micro-batch mean and clip factor in one
  double bias_correction1 = 1;  // 1 - beta1^step, step counted from 1
  double bias_correction2 = 1;  // 1 - beta2^step
};

struct AdamWSpans {
  float* master = nullptr;
  float* exp_avg = nullptr;
  float* exp_avg_sq = nullptr;
  const void* grad = nullptr;  // grad_dtype
  void* param = nullptr;       // param_dtype; written, never read
  int64_t numel = 0;
  DType grad_dtype = DType::fp32;   // fp32, bf16 or fp16
  DType param_dtype = DType::bf16;  // fp32, bf16 or fp16
};

// One pass: unscale, decay, moments, update, write back, cast. bf16 parameters round half away from
// zero with NaN kept NaN; fp16 to nearest even.
void adamw_update(const AdamWScalars& scalars, const AdamWSpans& spans);

// How a gradient lands in its accumulator: dst = src, or dst += src in fp32. `dst_dtype` equals
// `src_dtype` or is fp32; adding needs fp32.
struct LandGradientSpans {
  void* dst = nullptr;
  DType dst_dtype = DType::fp32;
  const void* src = nullptr;
  DType src_dtype = DType::bf16;
  int64_t numel = 0;  // a multiple of the grain
  bool add = false;
  // Null, or one double per grain: the sum of squares of dst after landing, in double, in an order
  // fixed by element index alone. Not finite exactly when one of the grain's elements is not.
  double* grain_sum_of_squares = nullptr;
};
void land_gradient(const LandGradientSpans& spans);

// dst[i] = src[i] in another dtype: to bf16 half away from zero, to fp16 nearest even, NaN stays
// NaN; widening is exact.
void cast(void* dst, DType dst_dtype, const void* src, DType src_dtype, int64_t numel);

// Instruction set in force, lower case: "avx512", "avx2", "sse4", "scalar", ... Throws ConfigError
// when STRATA_FORCE_ISA names one that this machine or build lacks.
std::string_view active_isa();
// For tests: as if STRATA_FORCE_ISA had this value; empty restores the environment's choice.
// Not thread-safe against running kernels.
void force_isa(std::string_view isa);

}  // namespace strata::ops
