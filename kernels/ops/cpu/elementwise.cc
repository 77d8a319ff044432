#include "kernels/ops/cpu/elementwise.h"

#include "kernels/ops/cpu/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/ops/cpu/elementwise.cc"
#include "hwy/foreach_target.h"
#include "kernels/ops/cpu/layer_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::cpu::HWY_NAMESPACE {

// GELU with the tanh approximation is x * s, s = sigmoid(2 u), u = k0 (x + k1 x^3): one exponential
// and no cancellation for negative x.
constexpr float kTwoK0 = 1.5957691216057308f;  // 2 sqrt(2 / pi)
constexpr float kK1 = 0.044715f;

HWY_INLINE Vector gate(Vector x) {
  const F32 d;
  const auto cubic = hn::MulAdd(hn::Mul(x, x), hn::Set(d, -kTwoK0 * kK1), hn::Set(d, -kTwoK0));
  // Below e^88 the sum stays finite; 1 / e^88 is as good as zero for any x that reaches it.
  const auto minus_two_u = hn::Min(hn::Mul(x, cubic), hn::Set(d, 88.0f));
  const auto one = hn::Set(d, 1.0f);
  return hn::Div(one, hn::Add(one, hn::Exp(d, minus_two_u)));
}

void gelu_range(const GeluForwardArgs& args, int64_t begin, int64_t end) {
  with_element(args.dtype, [&](auto element) {
    using Element = decltype(element);
    const auto* x = static_cast<const typename Element::Stored*>(args.x) + begin;
    auto* out = static_cast<typename Element::Stored*>(args.out) + begin;
    for_vectors(end - begin, [&](int64_t i, auto part) {
      const auto value = load<Element>(x + i, part);
      store<Element>(hn::Mul(value, gate(value)), out + i, part);
    });
  });
}

// s + x s (1 - s) 2 u', with 2 u' = 2 k0 (1 + 3 k1 x^2).
HWY_INLINE Vector gelu_slope(Vector x) {
  const F32 d;
  const auto s = gate(x);
  const auto two_u_slope =
      hn::MulAdd(hn::Mul(x, x), hn::Set(d, 3 * kTwoK0 * kK1), hn::Set(d, kTwoK0));
  const auto bend = hn::Mul(hn::Mul(x, hn::Sub(hn::Set(d, 1.0f), s)), two_u_slope);
  return hn::MulAdd(s, bend, s);
}

void gelu_slope_range(const GeluBackwardArgs& args, int64_t begin, int64_t end) {
  with_element(args.dtype, [&](auto element) {
    using Element = decltype(element);
    const auto* x = static_cast<const typename Element::Stored*>(args.x) + begin;
    const auto* out_grad = static_cast<const typename Element::Stored*>(args.out_grad) + begin;
    auto* x_grad = static_cast<typename Element::Stored*>(args.x_grad) + begin;
    for_vectors(end - begin, [&](int64_t i, auto part) {
      const auto slope = gelu_slope(load<Element>(x + i, part));
      store<Element>(hn::Mul(load<Element>(out_grad + i, part), slope), x_grad + i, part);
    });
  });
}

void add_range(const AddArgs& args, int64_t begin, int64_t end) {
  with_element(args.dtype, [&](auto element) {
    using Element = decltype(element);
    const auto* x = static_cast<const typename Element::Stored*>(args.x) + begin;
    const auto* y = static_cast<const typename Element::Stored*>(args.y) + begin;
    auto* out = static_cast<typename Element::Stored*>(args.out) + begin;
    for_vectors(end - begin, [&](int64_t i, auto part) {
      const auto sum = hn::Add(load<Element>(x + i, part), load<Element>(y + i, part));
      store<Element>(sum, out + i, part);
    });
  });
}

}  // namespace strata::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/device/thread_team.h"

namespace strata::ops::cpu {
namespace {
HWY_EXPORT(gelu_range);
HWY_EXPORT(gelu_slope_range);
HWY_EXPORT(add_range);

// Whole vectors and cache lines, so that only the very last vector is cut off.
constexpr int64_t kElementsTogether = 1024;

template <class Args>
void run(const Args& args, void (*kernel)(const Args&, int64_t, int64_t)) {
  parallel_for(args.numel, kElementsTogether,
               [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}
}  // namespace

void gelu_forward(const GeluForwardArgs& args) { run(args, &HWY_DYNAMIC_DISPATCH(gelu_range)); }
void gelu_backward(const GeluBackwardArgs& args) {
  run(args, &HWY_DYNAMIC_DISPATCH(gelu_slope_range));
}
void add(const AddArgs& args) { run(args, &HWY_DYNAMIC_DISPATCH(add_range)); }

void copy(const void* x, void* out, size_t bytes) {
  if (x == out) return;
  constexpr int64_t kBytesTogether = 1 << 16;
  parallel_for(static_cast<int64_t>(bytes), kBytesTogether, [&](int64_t begin, int64_t end) {
    std::memcpy(static_cast<std::byte*>(out) + begin, static_cast<const std::byte*>(x) + begin,
                static_cast<size_t>(end - begin));
  });
}

}  // namespace strata::ops::cpu
#endif  // HWY_ONCE
