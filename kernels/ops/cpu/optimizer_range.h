// What the optimizer's entry points share: how work is cut, and in which floating-point mode it
// runs.
#pragma once

#include <cfenv>
#include <cstdint>

#include "kernels/device/thread_team.h"
#include "strata/dtype.h"
#include "strata/grain.h"

namespace strata::ops {

// The default floating-point mode on this thread until destroyed: round to nearest, no flush to
// zero, no traps. Libraries built with -ffast-math, and PyTorch's set_flush_denormal, leave others.
class DefaultFloatMode {
 public:
  DefaultFloatMode() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatMode() { std::fesetenv(&saved_); }
  DefaultFloatMode(const DefaultFloatMode&) = delete;
  DefaultFloatMode& operator=(const DefaultFloatMode&) = delete;

 private:
  std::fenv_t saved_;
};

// body(begin, end) over [0, numel) on the team, cut at grains, in the default floating-point mode.
template <typename Body>
void for_grains(int64_t numel, const Body& body) {
  parallel_for(numel, kGrainNumel, [&body](int64_t begin, int64_t end) {
    const DefaultFloatMode mode;
    body(begin, end);
  });
}

constexpr bool is_float(DType dtype) { return dtype != DType::int32; }

}  // namespace strata::ops
