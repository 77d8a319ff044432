// Whether updating before the norm is known is worth it: a speculation that does not hold costs its
// reads and writes again.
//
// A step's norm says afterwards whether its speculation would have held, also where there was none:
// so the policy sees every step, and comes back by itself once steps would hold again. It depends
// on norms alone, which all ranks share, and on no clock.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>

namespace strata::engine {

class SpeculationPolicy {
 public:
  static constexpr size_t kWindow = 16;     // last steps looked at
  static constexpr size_t kMostMisses = 4;  // of them, for which it is still worth it

  bool worthwhile() const {
    return static_cast<size_t>(std::count(missed_.begin(), missed_.end(), true)) <= kMostMisses;
  }
  // What became of a step: its speculation would not have held.
  void note(bool missed) {
    missed_[next_] = missed;
    next_ = (next_ + 1) % kWindow;
  }

 private:
  std::array<bool, kWindow> missed_ = {};
  size_t next_ = 0;
};

}  // namespace strata::engine
