#include <nvtx3/nvToolsExt.h>

#include <array>
#include <cstdio>

#include "kernels/device/profiler_range.h"

namespace strata {

void push_profiler_range(const TrafficTag& tag) noexcept {
  if (tag.index < 0) {
    nvtxRangePushA(tag.label);
    return;
  }
  std::array<char, 64> text = {};
  std::snprintf(text.data(), text.size(), "%s %d", tag.label, tag.index);
  nvtxRangePushA(text.data());
}

void pop_profiler_range() noexcept { nvtxRangePop(); }

}  // namespace strata
