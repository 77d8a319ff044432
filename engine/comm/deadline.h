// A timeout as people configure it, as a point on strata::now_ns()'s clock.
#pragma once

#include <algorithm>
#include <cstdint>

#include "strata/clock.h"

namespace strata::engine {

// A timeout that the clock is too short for counts as a year.
inline int64_t deadline_ns_after(double timeout_s) {
  constexpr double kYear_s = 365.0 * 24 * 3600;
  return now_ns() + static_cast<int64_t>(std::clamp(timeout_s, 0.0, kYear_s) * 1e9);
}

}  // namespace strata::engine
