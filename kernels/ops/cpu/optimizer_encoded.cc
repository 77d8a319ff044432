// The fused update of encoded state: the skeleton's pass, a block at a time through the first-level
// cache.
#include "kernels/ops/cpu/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/ops/cpu/optimizer_encoded.cc"
#include <cstdint>
#include <type_traits>

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

// A block's masters and parameters: load(i), then store(x, i), then finish().
class SplitMaster {
 public:
  SplitMaster(const EncodedSpans& spans, int64_t block)
      : param_(static_cast<uint16_t*>(spans.param) + block * kCodecBlockNumel),
        rest_(reinterpret_cast<uint16_t*>(spans.master.data + plain_at(block, sizeof(uint16_t)))) {}
  HWY_INLINE void prefetch(int64_t i) const {
    hwy::Prefetch(param_ + i);
    hwy::Prefetch(rest_ + i);
  }
  HWY_INLINE F32Pair load(int64_t i) const { return Split16::decode(param_ + i, rest_ + i); }
  HWY_INLINE void store(F32Pair x, int64_t i) {
    encode_bf16(x, param_ + i);
    Split16::encode_rest(x, rest_ + i);
  }
  HWY_INLINE void finish() {}

 private:
  uint16_t* const param_;
  uint16_t* const rest_;
};

class WholeMaster {
 public:
  WholeMaster(const EncodedSpans& spans, int64_t block)
      : spans_(spans),
        block_(block),
        at_(reinterpret_cast<float*>(spans.master.data + plain_at(block, sizeof(float)))) {}
  HWY_INLINE void prefetch(int64_t i) const { prefetch_fp32(at_ + i); }
  HWY_INLINE F32Pair load(int64_t i) const { return load_pair(at_ + i); }
  HWY_INLINE void store(F32Pair x, int64_t i) { store_pair(x, at_ + i); }
  HWY_INLINE void finish() {
    with_element(spans_.param_dtype, [&](auto element) {
      using Element = decltype(element);
      using Stored = typename Element::Stored;
      const F32 d;
      auto* const param = static_cast<Stored*>(spans_.param) + block_ * kCodecBlockNumel;
      for (int64_t i = 0; i < kCodecBlockNumel; i += kLanes) {
        const auto x = Element::encode_one_nan(d, hn::LoadU(d, at_ + i));
        hn::StoreU(x, hn::Rebind<Stored, F32>(), param + i);
      }
    });
  }

 private:
  const EncodedSpans& spans_;
  const int64_t block_;
  float* const at_;
};

// A block's gradients as they lie.
class Bf16Grad {
 public:
  Bf16Grad(const EncodedSpans& spans, int64_t block)
      : at_(static_cast<const uint16_t*>(spans.grad) + block * kCodecBlockNumel) {}
  HWY_INLINE F32Pair load(int64_t i) const { return decode_bf16(at_ + i); }
  HWY_INLINE void prefetch(int64_t i) const { hwy::Prefetch(at_ + i); }

 private:
  const uint16_t* const at_;
};

// fp32 or fp16.
class OtherGrad {
 public:
  OtherGrad(const EncodedSpans& spans, int64_t block) : dtype_(spans.grad_dtype) {
    const auto element_bytes = static_cast<int64_t>(size_bytes(dtype_));
    at_ = static_cast<const std::byte*>(spans.grad) + block * kCodecBlockNumel * element_bytes;
  }
  HWY_INLINE F32Pair load(int64_t i) const {
    if (dtype_ == DType::fp32) return load_pair(reinterpret_cast<const float*>(at_) + i);
    const F32 d;
    const U32Pair x = lower_of_words(load_words(reinterpret_cast<const uint16_t*>(at_) + i));
    return {Fp16::decode_lower(d, x.even), Fp16::decode_lower(d, x.odd)};
  }
  HWY_INLINE void prefetch(int64_t i) const {
    if (dtype_ == DType::fp32) return prefetch_fp32(reinterpret_cast<const float*>(at_) + i);
    hwy::Prefetch(at_ + i * 2);
  }

 private:
  const DType dtype_;
  const std::byte* at_;
};

// As far ahead as elements are asked for; past the end that does no harm.
constexpr int64_t kAhead = 256;

template <class Rule, class Grad, class Master, class ExpAvg, class ExpAvgSq>
HWY_INLINE void update_block(const Rule& rule, F32Vec grad_scale, const Grad& grad, Master master,
                             ExpAvg& exp_avg, ExpAvgSq& exp_avg_sq, const Noise& block_noise) {
  Noise noise = block_noise;
  for (int64_t i = 0; i < kCodecBlockNumel; i += kPairNumel) {
    grad.prefetch(i + kAhead);
    master.prefetch(i + kAhead);
    exp_avg.prefetch(i + kAhead);
    exp_avg_sq.prefetch(i + kAhead);
    const F32Pair g = grad.load(i);
    const F32Pair p = master.load(i);
    const F32Pair m = exp_avg.load(i);
    const F32Pair v = exp_avg_sq.load(i);
    StateVector even = {p.even, m.even, v.even};
    StateVector odd = {p.odd, m.odd, v.odd};
    rule(hn::Mul(g.even, grad_scale), even);
    rule(hn::Mul(g.odd, grad_scale), odd);
    make_one_nan<Rule>(even, odd);
    U32Pair bits = {hn::Zero(U32()), hn::Zero(U32())};
    if constexpr (ExpAvg::kRounds || ExpAvgSq::kRounds) bits = noise.next();
    exp_avg.store({even.exp_avg, odd.exp_avg}, bits, i);
    exp_avg_sq.store({even.exp_avg_sq, odd.exp_avg_sq}, bits, i);
    master.store({even.master, odd.master}, i);
  }
  master.finish();
  exp_avg.finish(block_noise);
  exp_avg_sq.finish(block_noise);
}

// The moment of an optimizer that keeps one, or none.
template <bool kKept, class Moment>
HWY_INLINE auto moment_block(const StateSpan& span, int64_t block) {
  if constexpr (kKept) {
    return Moment(span.data, block);
  } else {
    return NoMoment();
  }
}

template <class Rule, class Grad, class Master, template <StateKind> class Moment>
void update_blocks(const Rule& rule, const OptimizerScalars& scalars, const EncodedSpans& spans,
                   int64_t begin, int64_t end) {
  const F32Vec grad_scale = hn::Set(F32(), static_cast<float>(scalars.grad_scale));
  const Rule own_rule = rule;  // stores cannot change a local copy
  uint32_t key = 0;
  for (int64_t at = begin; at < end; at += kCodecBlockNumel) {
    const int64_t block = at / kCodecBlockNumel;
    const uint64_t index = spans.first_index + static_cast<uint64_t>(at - spans.begin);
    const auto place = static_cast<uint32_t>(index % kGrainNumel);
    if (at == begin || place == 0) key = Philox{scalars.step}(index / kGrainNumel, 0)[0];
    auto exp_avg =
        moment_block<Rule::kMoments.exp_avg, Moment<StateKind::exp_avg>>(spans.exp_avg, block);
    auto exp_avg_sq = moment_block<Rule::kMoments.exp_avg_sq, Moment<StateKind::exp_avg_sq>>(
        spans.exp_avg_sq, block);
    update_block(own_rule, grad_scale, Grad(spans, block), Master(spans, block), exp_avg,
                 exp_avg_sq, Noise(key, place));
  }
}

template <class Rule, template <StateKind> class Moment>
void update_form(const Rule& rule, const OptimizerScalars& scalars, const EncodedSpans& spans,
                 int64_t begin, int64_t end) {
  const bool is_bf16 = spans.grad_dtype == DType::bf16;
  if (spans.master.codec == Codec::split16) {
    is_bf16 ? update_blocks<Rule, Bf16Grad, SplitMaster, Moment>(rule, scalars, spans, begin, end)
            : update_blocks<Rule, OtherGrad, SplitMaster, Moment>(rule, scalars, spans, begin, end);
  } else {
    is_bf16 ? update_blocks<Rule, Bf16Grad, WholeMaster, Moment>(rule, scalars, spans, begin, end)
            : update_blocks<Rule, OtherGrad, WholeMaster, Moment>(rule, scalars, spans, begin, end);
  }
}

void update_encoded(const OptimizerScalars& scalars, const EncodedSpans& spans, int64_t begin,
                    int64_t end) {
  with_rule(scalars, [&](const auto& rule) {
    using Rule = std::decay_t<decltype(rule)>;
    const Codec moments = Rule::kMoments.exp_avg ? spans.exp_avg.codec : spans.exp_avg_sq.codec;
    switch (moments) {
      case Codec::bf16:
        return update_form<Rule, Bf16Moment>(rule, scalars, spans, begin, end);
      case Codec::int8:
        return update_form<Rule, Int8Moment>(rule, scalars, spans, begin, end);
      default:
        return update_form<Rule, Fp32Moment>(rule, scalars, spans, begin, end);
    }
  });
}

}  // namespace strata::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/ops/cpu/optimizer_range.h"
#include "kernels/ops/optimizer_checks.h"

namespace strata::ops {
namespace {

HWY_EXPORT(update_encoded);

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

}  // namespace

void optimizer_update(const OptimizerScalars& scalars, const EncodedSpans& spans) {
  if (is_plain(spans)) {
    return optimizer_update(scalars, plain_spans(spans));
  }
  check_update(scalars, spans);
  const auto kernel = in_force(HWY_DISPATCH_TABLE(update_encoded));
  for_grains(spans.end - spans.begin, [&](int64_t begin, int64_t end) {
    kernel(scalars, spans, spans.begin + begin, spans.begin + end);
  });
}

}  // namespace strata::ops
#endif  // HWY_ONCE
