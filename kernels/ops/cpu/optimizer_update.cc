// The fused update: the one pass that every optimizer goes through.
#include "kernels/ops/cpu/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/ops/cpu/optimizer_update.cc"
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/ops/cpu/elements-inl.h"
#include "kernels/ops/cpu/optimizer_rules-inl.h"
#include "kernels/ops/optimizer_ops.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::HWY_NAMESPACE {

constexpr int64_t kBlock = 32;  // two lines of fp32, one of 16 bits

// Highway's Stream of a vector below 16 bytes writes 16.
template <class Element>
constexpr bool can_stream() {
  return sizeof(typename Element::Stored) * kLanes >= 16;
}

template <class Element>
HWY_INLINE void write_param(F32Vec x, bool stream, typename Element::Stored* to) {
  const hn::Rebind<typename Element::Stored, F32> d;
  const auto encoded = Element::encode_one_nan(F32(), x);
  if constexpr (can_stream<Element>()) {
    if (stream) return hn::Stream(encoded, d, to);
  }
  hn::StoreU(encoded, d, to);
}

// Where the next element of each span is; null where the rule has no such moment.
template <class Rule, class Grad, class Param>
struct Cursor {
  Cursor(const OptimizerSpans& spans, int64_t at)
      : master(spans.master + at),
        exp_avg(Rule::kMoments.exp_avg ? spans.exp_avg + at : nullptr),
        exp_avg_sq(Rule::kMoments.exp_avg_sq ? spans.exp_avg_sq + at : nullptr),
        grad(static_cast<const typename Grad::Stored*>(spans.grad) + at),
        param(static_cast<typename Param::Stored*>(spans.param) + at) {}

  float* HWY_RESTRICT master;
  float* HWY_RESTRICT exp_avg;
  float* HWY_RESTRICT exp_avg_sq;
  const typename Grad::Stored* HWY_RESTRICT grad;
  typename Param::Stored* HWY_RESTRICT param;
};

template <class Rule, class Grad, class Param>
HWY_INLINE void update_vector(const Rule& rule, F32Vec grad_scale,
                              const Cursor<Rule, Grad, Param>& at, int64_t i, bool stream) {
  const F32 d;
  StateVector x = {hn::LoadU(d, at.master + i), hn::Zero(d), hn::Zero(d)};
  if constexpr (Rule::kMoments.exp_avg) x.exp_avg = hn::LoadU(d, at.exp_avg + i);
  if constexpr (Rule::kMoments.exp_avg_sq) x.exp_avg_sq = hn::LoadU(d, at.exp_avg_sq + i);

  rule(hn::Mul(load<Grad>(d, at.grad + i), grad_scale), x);
  make_one_nan<Rule>(x);

  if constexpr (Rule::kMoments.exp_avg) hn::StoreU(x.exp_avg, d, at.exp_avg + i);
  if constexpr (Rule::kMoments.exp_avg_sq) hn::StoreU(x.exp_avg_sq, d, at.exp_avg_sq + i);
  hn::StoreU(x.master, d, at.master + i);
  write_param<Param>(x.master, stream, at.param + i);
}

// Asks for what is kAhead elements on; past the end that does no harm. As far as a core's misses
// reach while the divider is busy: on Zen 4 at 90 GB/s, 64 to 128 gave 3 to 7 % over no prefetch,
// 256 nothing, and 512 lost 5 %, because the lines in flight outgrow the miss buffers.
template <class T>
HWY_INLINE void prefetch_block(const T* from) {
  constexpr int64_t kAhead = 96;
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < kBlock; i += kLine) hwy::Prefetch(from + kAhead + i);
}

// Streaming stores spare reading the parameters' lines before they are overwritten; they need
// vector alignment, and pay once the output would not have stayed in the cache anyway.
template <class Param>
bool should_stream(const OptimizerSpans& spans, int64_t begin) {
  using Stored = typename Param::Stored;
  constexpr int64_t kStreamFromNumel = int64_t{1} << 19;
  const auto address = reinterpret_cast<uintptr_t>(static_cast<Stored*>(spans.param) + begin);
  return can_stream<Param>() && spans.numel >= kStreamFromNumel &&
         address % (sizeof(Stored) * kLanes) == 0;
}

// One call's arithmetic. Copied into the loops: stores to the spans cannot change a local copy.
template <class Rule>
struct Update {
  Rule rule;
  float grad_scale;
};

// Whole blocks.
template <class Grad, class Param, class Rule>
void update_blocks(Update<Rule> update, const OptimizerSpans& spans, int64_t begin, int64_t end) {
  const F32Vec grad_scale = hn::Set(F32(), update.grad_scale);
  const Cursor<Rule, Grad, Param> at(spans, begin);
  const bool stream = should_stream<Param>(spans, begin);
  for (int64_t i = 0; i < end - begin; i += kBlock) {
    prefetch_block(at.master + i);
    if constexpr (Rule::kMoments.exp_avg) prefetch_block(at.exp_avg + i);
    if constexpr (Rule::kMoments.exp_avg_sq) prefetch_block(at.exp_avg_sq + i);
    prefetch_block(at.grad + i);
    for (int64_t j = i; j < i + kBlock; j += kLanes) {
      update_vector<Rule, Grad, Param>(update.rule, grad_scale, at, j, stream);
    }
  }
  if (stream) hwy::FlushStream();
}

// The first `numel` elements of a block, the rest zero; none of a span that is not there.
template <class T>
struct PaddedBlock {
  PaddedBlock(const T* from, int64_t numel) {
    if (from != nullptr) std::memcpy(data, from, static_cast<size_t>(numel) * sizeof(T));
  }
  void copy_to(T* to, int64_t numel) const {
    if (to != nullptr) std::memcpy(to, data, static_cast<size_t>(numel) * sizeof(T));
  }

  T data[kBlock] = {};
};

// The last elements, fewer than a block, through the same code on padded copies.
template <class Grad, class Param, class Rule>
void update_rest(const Update<Rule>& update, const OptimizerSpans& spans, int64_t begin,
                 int64_t end) {
  const Cursor<Rule, Grad, Param> at(spans, begin);
  const int64_t numel = end - begin;
  PaddedBlock master(at.master, numel);
  PaddedBlock exp_avg(at.exp_avg, numel);
  PaddedBlock exp_avg_sq(at.exp_avg_sq, numel);
  const PaddedBlock grad(at.grad, numel);
  PaddedBlock<typename Param::Stored> param(nullptr, numel);
  const OptimizerSpans padded = {.master = master.data,
                                 .exp_avg = exp_avg.data,
                                 .exp_avg_sq = exp_avg_sq.data,
                                 .grad = grad.data,
                                 .param = param.data,
                                 .numel = kBlock};
  update_blocks<Grad, Param>(update, padded, 0, kBlock);
  master.copy_to(at.master, numel);
  exp_avg.copy_to(at.exp_avg, numel);
  exp_avg_sq.copy_to(at.exp_avg_sq, numel);
  param.copy_to(at.param, numel);
}

template <class Grad, class Param, class Rule>
void update_range(const Update<Rule>& update, const OptimizerSpans& spans, int64_t begin,
                  int64_t end) {
  const int64_t last = begin + (end - begin) / kBlock * kBlock;
  update_blocks<Grad, Param>(update, spans, begin, last);
  if (last < end) update_rest<Grad, Param>(update, spans, last, end);
}

void update_slice(const OptimizerScalars& scalars, const OptimizerSpans& spans, int64_t begin,
                  int64_t end) {
  with_rule(scalars, [&](const auto& rule) {
    const Update<std::decay_t<decltype(rule)>> update = {rule,
                                                         static_cast<float>(scalars.grad_scale)};
    with_element(spans.grad_dtype, [&](auto grad) {
      with_element(spans.param_dtype, [&](auto param) {
        update_range<decltype(grad), decltype(param)>(update, spans, begin, end);
      });
    });
  });
}

}  // namespace strata::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/ops/cpu/optimizer_range.h"
#include "strata/error.h"

namespace strata::ops {
namespace {

HWY_EXPORT(update_slice);

bool has_state(OptimizerKind kind, const OptimizerSpans& spans) {
  const OptimizerMoments moments = moments_of(kind);
  return spans.master != nullptr && (!moments.exp_avg || spans.exp_avg != nullptr) &&
         (!moments.exp_avg_sq || spans.exp_avg_sq != nullptr);
}

}  // namespace

void optimizer_update(const OptimizerScalars& scalars, const OptimizerSpans& spans) {
  require(is_float(spans.grad_dtype) && is_float(spans.param_dtype) && spans.numel >= 0,
          "optimizer_update: gradient and parameter are fp32, bf16 or fp16, and numel is not "
          "negative");
  require(spans.numel == 0 || has_state(scalars.kind, spans),
          "optimizer_update: the master and the optimizer's moments have a span each");
  const auto kernel = in_force(HWY_DISPATCH_TABLE(update_slice));
  for_grains(spans.numel, [&](int64_t begin, int64_t end) { kernel(scalars, spans, begin, end); });
}

}  // namespace strata::ops
#endif  // HWY_ONCE
