#include "kernels/ops/cpu/narrow_rows.h"

#include "kernels/ops/cpu/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/ops/cpu/narrow_rows.cc"
#include "hwy/foreach_target.h"
#include "kernels/ops/cpu/layer_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::cpu::HWY_NAMESPACE {

void widen(DType dtype, const void* from, int64_t numel, float* to) {
  with_element(dtype, [&](auto element) {
    using Element = decltype(element);
    const auto* x = static_cast<const typename Element::Stored*>(from);
    for_vectors(numel, [&](int64_t i, auto part) {
      store<Fp32>(load<Element>(x + i, part), to + i, part);
    });
  });
}

void round(DType dtype, const float* from, int64_t numel, void* to) {
  with_element(dtype, [&](auto element) {
    using Element = decltype(element);
    auto* y = static_cast<typename Element::Stored*>(to);
    for_vectors(numel, [&](int64_t i, auto part) {
      store<Element>(load<Fp32>(from + i, part), y + i, part);
    });
  });
}

}  // namespace strata::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace strata::ops::cpu {
namespace {
HWY_EXPORT(widen);
HWY_EXPORT(round);
}  // namespace

void widen_row(DType dtype, const void* from, int64_t numel, float* to) {
  HWY_DYNAMIC_DISPATCH(widen)(dtype, from, numel, to);
}
void round_row(DType dtype, const float* from, int64_t numel, void* to) {
  HWY_DYNAMIC_DISPATCH(round)(dtype, from, numel, to);
}

}  // namespace strata::ops::cpu
#endif  // HWY_ONCE
