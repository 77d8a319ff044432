#include "kernels/ops/cpu/bf16_rows.h"

#include "kernels/ops/cpu/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/ops/cpu/bf16_rows.cc"
#include "hwy/foreach_target.h"
#include "kernels/ops/cpu/layer_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace strata::ops::cpu::HWY_NAMESPACE {

void widen_row(const uint16_t* from, int64_t numel, float* to) {
  for_vectors(numel, [&](int64_t i, auto part) {
    store<Fp32>(load<Bf16Even>(from + i, part), to + i, part);
  });
}

void round_row(const float* from, int64_t numel, uint16_t* to) {
  for_vectors(numel, [&](int64_t i, auto part) {
    store<Bf16Even>(load<Fp32>(from + i, part), to + i, part);
  });
}

}  // namespace strata::ops::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace strata::ops::cpu {
namespace {
HWY_EXPORT(widen_row);
HWY_EXPORT(round_row);
}  // namespace

void widen_bf16(const uint16_t* from, int64_t numel, float* to) {
  HWY_DYNAMIC_DISPATCH(widen_row)(from, numel, to);
}
void round_to_bf16(const float* from, int64_t numel, uint16_t* to) {
  HWY_DYNAMIC_DISPATCH(round_row)(from, numel, to);
}

}  // namespace strata::ops::cpu
#endif  // HWY_ONCE
