// How parallel_for cuts its work: the same for every implementation of the thread team, because
// results that are kept per range must not depend on which one was built.
#pragma once

#include <algorithm>
#include <cstdint>

#include "strata/grain.h"

namespace strata::internal {

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  constexpr bool empty() const { return end <= begin; }
};

// Range `part` of `parts` over [0, count): contiguous, in order, as even as multiples allow.
constexpr Range partition(int64_t count, int64_t multiple, int part, int parts) {
  const int64_t units = round_up(count, multiple) / multiple;
  // units / parts first: units * part could overflow where count is near the end of its range.
  const int64_t share = units / parts;
  const int64_t rest = units % parts;
  const int64_t begin = share * part + std::min<int64_t>(part, rest);
  const int64_t end = begin + share + (part < rest ? 1 : 0);
  return {begin * multiple, std::min(end * multiple, count)};
}

}  // namespace strata::internal
