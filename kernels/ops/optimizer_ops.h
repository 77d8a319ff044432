// Element-wise arithmetic on training state: the fused update, gradient landing, casts.
//
// One Highway source, the instruction set chosen at run time. STRATA_FORCE_ISA, one of
// available_isas(), fixes it. The same bits come out for every instruction set, slice start and
// number of threads, whatever the caller's floating-point mode (rounding, flush-to-zero): explicit
// FMA, IEEE division and root, our own integer rounding, one flush of denormal moments to zero, and
// one NaN (positive, quiet, no payload) wherever arithmetic makes or meets one.
//
// Calls run on the calling thread's team (kernels/device/thread_team.h) and allocate nothing. Spans
// have the same length, do not overlap unless said, and need only their element's alignment. Calls
// throw Error when a dtype or length is not one that is named here, and ConfigError as active_isa()
// does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "strata/dtype.h"

namespace strata::ops {

// Scalars of one AdamW step for elements that share one optimizer setting.
//
//   g' = g * grad_scale
//   p  = p - lr * weight_decay * p                          (decoupled; Loshchilov & Hutter 2019)
//   m  = beta1 * m + (1 - beta1) * g',  v = beta2 * v + (1 - beta2) * g'^2     (Kingma & Ba 2015)
//   p  = p - (lr / bias_correction1) * m / (sqrt(v) / sqrt(bias_correction2) + eps)
//
// In double, as configured: 1 - beta2 of a beta2 that went through float is off by 1e-5. What the
// kernels use (1 - beta2, lr / bias_correction1, ...) is derived in double and rounded to fp32
// once.
struct AdamWScalars {
  double lr = 0;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  double grad_scale = 1;        // unscale, micro-batch mean and clip factor in one
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

// One pass: unscale, decay, moments, update, write back, cast. Moments below FLT_MIN become zero.
// bf16 parameters round half away from zero with NaN kept NaN; fp16 to nearest even.
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
// NaN of the same sign; widening and copying keep every bit.
void cast(void* dst, DType dst_dtype, const void* src, DType src_dtype, int64_t numel);

// Instruction set in force, as the code that runs reports it: "avx512", "avx2", "sse4", "ssse3",
// "scalar", "neon", ... Throws ConfigError when STRATA_FORCE_ISA names one that this machine or
// build lacks.
std::string_view active_isa();
// What this machine and build have, the one chosen without STRATA_FORCE_ISA first.
std::vector<std::string_view> available_isas();
// For tests: as if STRATA_FORCE_ISA had this value; empty restores the environment's choice.
// Not thread-safe against running kernels.
void force_isa(std::string_view isa);

}  // namespace strata::ops
