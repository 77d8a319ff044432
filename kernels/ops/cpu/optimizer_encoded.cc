// The fused update of encoded state: the skeleton's pass, a block at a time through the first-level
// cache.
#include "kernels/ops/cpu/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/ops/cpu/optimizer_encoded.cc"
#include <cstdint>

#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/ops/cpu/codecs-inl.h"
#include "kernels/ops/cpu/elements-inl.h"
#include "kernels/ops/cpu/optimizer_rules-inl.h"
#include "kernels/ops/optimizer_ops.h"
#include "kernels/ops/random.h"
#include "strata/codec.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::HWY_NAMESPACE {

// What a block is decoded into where it is not fp32 already.
struct Buffers {
  HWY_ALIGN float master[kCodecBlockNumel];
  HWY_ALIGN float exp_avg[kCodecBlockNumel];
  HWY_ALIGN float exp_avg_sq[kCodecBlockNumel];
  HWY_ALIGN float grad[kCodecBlockNumel];
};

// A block of fp32 state, which is updated where it lies.
HWY_INLINE float* in_place(const StateSpan& span, int64_t block) {
  return reinterpret_cast<float*>(span.data + plain_at(block, sizeof(float)));
}
HWY_INLINE int16_t* rest_of(const EncodedSpans& spans, int64_t block) {
  return reinterpret_cast<int16_t*>(spans.master.data + plain_at(block, sizeof(int16_t)));
}

HWY_INLINE float* decode_master(const EncodedSpans& spans, int64_t block, float* buffer) {
  if (spans.master.codec == Codec::fp32) return in_place(spans.master, block);
  const auto* const rest = rest_of(spans, block);
  const auto* const param = static_cast<const uint16_t*>(spans.param) + block * kCodecBlockNumel;
  for_vectors(
      [&](int64_t i) { hn::StoreU(Split16::decode(param + i, rest + i), F32(), buffer + i); });
  return buffer;
}

template <class Int8>
HWY_INLINE float* moment_values(const StateSpan& span, int64_t block, float* buffer) {
  if (span.codec == Codec::fp32) return in_place(span, block);
  decode_moment<Int8>(span.codec, span.data, block, buffer);
  return buffer;
}

HWY_INLINE const float* decode_grad(const EncodedSpans& spans, int64_t block, float* buffer) {
  const F32 d;
  const int64_t at = block * kCodecBlockNumel;
  if (spans.grad_dtype == DType::fp32) return static_cast<const float*>(spans.grad) + at;
  const auto* const grad = static_cast<const uint16_t*>(spans.grad) + at;
  if (spans.grad_dtype == DType::bf16) {
    for_vectors([&](int64_t i) { hn::StoreU(load<Bf16>(d, grad + i), d, buffer + i); });
  } else {
    for_vectors([&](int64_t i) { hn::StoreU(load<Fp16>(d, grad + i), d, buffer + i); });
  }
  return buffer;
}

// The parameter, and the master's rest beside it.
HWY_INLINE void encode_master(const EncodedSpans& spans, int64_t block, const float* master) {
  const F32 d;
  if (spans.master.codec == Codec::split16) {
    auto* const rest = rest_of(spans, block);
    for_vectors([&](int64_t i) { Split16::encode_rest(hn::LoadU(d, master + i), rest + i); });
  }
  with_element(spans.param_dtype, [&](auto element) {
    using Element = decltype(element);
    using Stored = typename Element::Stored;
    auto* const param = static_cast<Stored*>(spans.param) + block * kCodecBlockNumel;
    for_vectors([&](int64_t i) {
      hn::StoreU(Element::encode_one_nan(d, hn::LoadU(d, master + i)), hn::Rebind<Stored, F32>(),
                 param + i);
    });
  });
}

HWY_INLINE void prefetch(const void* from, int64_t bytes) {
  const auto* const line = static_cast<const std::byte*>(from);
  for (int64_t at = 0; at < bytes; at += 64) hwy::Prefetch(line + at);
}

HWY_INLINE void prefetch_state(const StateSpan& span, int64_t block) {
  if (span.codec == Codec::int8) {
    prefetch(span.data + int8_codes_at(block), kCodecBlockNumel);
  } else if (span.codec != Codec::none) {
    const int64_t block_bytes = stored_bytes(span.codec, kCodecBlockNumel);
    prefetch(span.data + block * block_bytes, block_bytes);
  }
}

// What the block after next will read; past the end that does no harm.
HWY_INLINE void prefetch_block(const EncodedSpans& spans, int64_t block) {
  prefetch_state(spans.master, block);
  prefetch_state(spans.exp_avg, block);
  prefetch_state(spans.exp_avg_sq, block);
  const auto grad_bytes = static_cast<int64_t>(size_bytes(spans.grad_dtype)) * kCodecBlockNumel;
  prefetch(static_cast<const std::byte*>(spans.grad) + block * grad_bytes, grad_bytes);
  if (spans.master.codec == Codec::split16) {
    prefetch(static_cast<const uint16_t*>(spans.param) + block * kCodecBlockNumel,
             kCodecBlockNumel * 2);
  }
}

template <class Rule>
HWY_INLINE void update_values(const Rule& rule, float grad_scale, const float* HWY_RESTRICT grad,
                              float* HWY_RESTRICT master, float* HWY_RESTRICT exp_avg,
                              float* HWY_RESTRICT exp_avg_sq) {
  const F32 d;
  const F32Vec scale = hn::Set(d, grad_scale);
  for_vectors([&](int64_t i) {
    StateVector x = {hn::LoadU(d, master + i), hn::Zero(d), hn::Zero(d)};
    if constexpr (Rule::kMoments.exp_avg) x.exp_avg = hn::LoadU(d, exp_avg + i);
    if constexpr (Rule::kMoments.exp_avg_sq) x.exp_avg_sq = hn::LoadU(d, exp_avg_sq + i);
    rule(hn::Mul(hn::LoadU(d, grad + i), scale), x);
    make_one_nan(x);
    if constexpr (Rule::kMoments.exp_avg) hn::StoreU(x.exp_avg, d, exp_avg + i);
    if constexpr (Rule::kMoments.exp_avg_sq) hn::StoreU(x.exp_avg_sq, d, exp_avg_sq + i);
    hn::StoreU(x.master, d, master + i);
  });
}

template <class Rule>
void update_block(const Rule& rule, const OptimizerScalars& scalars, const EncodedSpans& spans,
                  int64_t block) {
  Buffers buffers;
  float* const master = decode_master(spans, block, buffers.master);
  const float* const grad = decode_grad(spans, block, buffers.grad);
  float* const exp_avg = moment_values<Int8ExpAvg>(spans.exp_avg, block, buffers.exp_avg);
  float* const exp_avg_sq =
      moment_values<Int8ExpAvgSq>(spans.exp_avg_sq, block, buffers.exp_avg_sq);
  update_values(rule, static_cast<float>(scalars.grad_scale), grad, master, exp_avg, exp_avg_sq);
  encode_master(spans, block, master);
  const uint64_t index = spans.first_index / kCodecBlockNumel +
                         static_cast<uint64_t>(block - spans.begin / kCodecBlockNumel);
  const uint32_t key = Philox{scalars.step}(index, 0)[0];
  encode_moment<Int8ExpAvg>(spans.exp_avg.codec, exp_avg, UpperNoise{key}, block,
                            spans.exp_avg.data);
  encode_moment<Int8ExpAvgSq>(spans.exp_avg_sq.codec, exp_avg_sq, LowerNoise{key}, block,
                              spans.exp_avg_sq.data);
}

void update_encoded(const OptimizerScalars& scalars, const EncodedSpans& spans, int64_t begin,
                    int64_t end) {
  constexpr int64_t kAhead = 2;
  with_rule(scalars, [&](const auto& rule) {
    for (int64_t at = begin; at < end; at += kCodecBlockNumel) {
      const int64_t block = at / kCodecBlockNumel;
      prefetch_block(spans, block + kAhead);
      update_block(rule, scalars, spans, block);
    }
  });
}

}  // namespace strata::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/ops/cpu/optimizer_range.h"
#include "strata/error.h"

namespace strata::ops {
namespace {

HWY_EXPORT(update_encoded);

bool is_plain(const StateSpan& span) {
  return span.codec == Codec::fp32 || span.codec == Codec::none;
}

float* plain_values(const StateSpan& span, int64_t begin) {
  return span.codec == Codec::none ? nullptr : reinterpret_cast<float*>(span.data) + begin;
}

OptimizerSpans plain_spans(const EncodedSpans& spans) {
  const auto bytes = [&](DType dtype) {
    return spans.begin * static_cast<int64_t>(size_bytes(dtype));
  };
  return {.master = plain_values(spans.master, spans.begin),
          .exp_avg = plain_values(spans.exp_avg, spans.begin),
          .exp_avg_sq = plain_values(spans.exp_avg_sq, spans.begin),
          .grad = static_cast<const std::byte*>(spans.grad) + bytes(spans.grad_dtype),
          .param = static_cast<std::byte*>(spans.param) + bytes(spans.param_dtype),
          .numel = spans.end - spans.begin,
          .grad_dtype = spans.grad_dtype,
          .param_dtype = spans.param_dtype};
}

bool is_moment_codec(const StateSpan& span, bool kept) {
  if (!kept) return true;
  return span.data != nullptr &&
         (span.codec == Codec::fp32 || span.codec == Codec::bf16 || span.codec == Codec::int8);
}

void check(const OptimizerScalars& scalars, const EncodedSpans& spans) {
  const OptimizerMoments moments = moments_of(scalars.kind);
  const bool master_fits =
      spans.master.codec == Codec::fp32 ||
      (spans.master.codec == Codec::split16 && spans.param_dtype == DType::bf16);
  require(is_float(spans.grad_dtype) && is_float(spans.param_dtype),
          "optimizer_update: gradient and parameter are fp32, bf16 or fp16");
  require(spans.master.data != nullptr && master_fits,
          "optimizer_update: the master is fp32, or split16 beside bf16 parameters");
  require(is_moment_codec(spans.exp_avg, moments.exp_avg) &&
              is_moment_codec(spans.exp_avg_sq, moments.exp_avg_sq),
          "optimizer_update: the optimizer's moments are fp32, bf16 or int8");
  require(spans.begin % kCodecBlockNumel == 0 && spans.end % kCodecBlockNumel == 0 &&
              spans.first_index % kCodecBlockNumel == 0 && spans.begin <= spans.end,
          "optimizer_update: encoded state is updated in whole blocks");
}

}  // namespace

void optimizer_update(const OptimizerScalars& scalars, const EncodedSpans& spans) {
  if (is_plain(spans.master) && is_plain(spans.exp_avg) && is_plain(spans.exp_avg_sq)) {
    return optimizer_update(scalars, plain_spans(spans));
  }
  check(scalars, spans);
  const auto kernel = in_force(HWY_DISPATCH_TABLE(update_encoded));
  for_grains(spans.end - spans.begin, [&](int64_t begin, int64_t end) {
    kernel(scalars, spans, spans.begin + begin, spans.begin + end);
  });
}

}  // namespace strata::ops
#endif  // HWY_ONCE
