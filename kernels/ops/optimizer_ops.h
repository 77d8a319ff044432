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

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "strata/codec.h"
#include "strata/dtype.h"
#include "strata/optimizer.h"
#include "strata/tier.h"

namespace strata::ops {

// Scalars of one step for elements that share one optimizer setting. With g' = g * grad_scale, m
// for exp_avg and v for exp_avg_sq:
//
//   adamw    m = beta1 * m + (1 - beta1) * g',  v = beta2 * v + (1 - beta2) * g'^2
//            p = p - lr * weight_decay * p
//            p = p - (lr / bias_correction1) * m / (sqrt(v) / sqrt(bias_correction2) + eps)
//            (Kingma & Ba 2015, algorithm 1; decay decoupled: Loshchilov & Hutter 2019, algorithm
//            2)
//   adam     the same with g' + weight_decay * p for g' and no other decay
//   adagrad  g' = g' + weight_decay * p,  v = v + g'^2,  p = p - lr * g' / (sqrt(v) + eps)
//            (Duchi et al. 2011; eps and no decay of lr as in torch.optim.Adagrad)
//   lion     p = p - lr * weight_decay * p - lr * sign(beta1 * m + (1 - beta1) * g')
//            m = beta2 * m + (1 - beta2) * g'                  (Chen et al. 2023, algorithm 2)
//   sgd      m = momentum * m + g' + weight_decay * p,  p = p - lr * m
//            (torch.optim.SGD: dampening 0, not Nesterov's)
//
// What an optimizer's lines do not name, it does not read. In double, as configured: 1 - beta2 of a
// beta2 that went through float is off by 1e-5. What the kernels use (1 - beta2,
// lr / bias_correction1, ...) is derived in double and rounded to fp32 once.
struct OptimizerScalars {
  OptimizerKind kind = OptimizerKind::adamw;
  double lr = 0;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double momentum = 0.9;
  double eps = 1e-8;
  double weight_decay = 0;
  double grad_scale = 1;        // unscale, micro-batch mean and clip factor in one
  double bias_correction1 = 1;  // 1 - beta1^step, step counted from 1
  double bias_correction2 = 1;  // 1 - beta2^step
  uint64_t step = 1;            // with an element's index, the counter of stochastic rounding
};

struct OptimizerSpans {
  float* master = nullptr;
  float* exp_avg = nullptr;     // unused where moments_of() the optimizer has none
  float* exp_avg_sq = nullptr;  // likewise
  const void* grad = nullptr;   // grad_dtype
  void* param = nullptr;        // param_dtype; written, never read
  int64_t numel = 0;
  DType grad_dtype = DType::fp32;   // fp32, bf16 or fp16
  DType param_dtype = DType::bf16;  // fp32, bf16 or fp16
};

// One pass: unscale, decay, moments, update, write back, cast. Moments below FLT_MIN become zero.
// bf16 parameters round half away from zero with NaN kept NaN; fp16 to nearest even.
void optimizer_update(const OptimizerScalars& scalars, const OptimizerSpans& spans);

// State as it is kept. Every pointer is of the same element, the first of a grain.
struct StateSpan {
  std::byte* data = nullptr;
  Codec codec = Codec::none;
};
struct EncodedSpans {
  StateSpan master;  // fp32 or split16
  StateSpan exp_avg;
  StateSpan exp_avg_sq;
  const void* grad = nullptr;
  void* param = nullptr;  // read too where the master is split16
  DType grad_dtype = DType::fp32;
  DType param_dtype = DType::bf16;
  // Elements to update, counted from there; multiples of kCodecBlockNumel where a codec is not
  // fp32.
  int64_t begin = 0;
  int64_t end = 0;
  // Of element `begin`, in the whole model; a multiple of kCodecBlockNumel likewise.
  uint64_t first_index = 0;
};

// The same pass over encoded state: decode, update, encode. fp32 state comes out with the bits that
// the call above gives it.
void optimizer_update(const OptimizerScalars& scalars, const EncodedSpans& spans);

// Whole grains of a state kind as fp32 values.
struct CodecSpans {
  StateKind kind = StateKind::master;  // master, exp_avg or exp_avg_sq
  Codec codec = Codec::fp32;
  const std::byte* stored = nullptr;  // stored_bytes(codec, numel)
  const void* param = nullptr;        // bf16 parameters; for split16 alone
  float* values = nullptr;
  int64_t numel = 0;
};
void decode_state(const CodecSpans& spans);

// Master weights as they are kept; beside split16 the parameters are cast()'s to write.
void encode_master(Codec codec, const float* master, int64_t numel, std::byte* stored);

// Moments as they are kept, rounded stochastically with noise that is a function of `key` and an
// element's place in its grain. What the codec can hold is kept as it is: bf16 values by bf16.
void encode_moments(StateKind kind, Codec codec, const float* values, int64_t numel, uint32_t key,
                    std::byte* stored);

// Elements [begin, end) of encoded state, whole blocks, become zero: zero bytes in every codec.
void clear_blocks(Codec codec, int64_t begin, int64_t end, std::byte* stored);

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
