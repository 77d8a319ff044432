// What both implementations of the thread team share: which team the calling thread is master of,
// and when a loop is worth sharing at all.
#pragma once

#include <cstdint>

#include "kernels/device/thread_team.h"

namespace strata::internal {

// Per thread. A scope sets `in_scope` and `size`; while parallel_for runs, `size` is 1 on its
// threads, so that a loop inside a loop stays on its own thread.
struct TeamState {
  bool in_scope = false;
  int size = 1;
};
TeamState& team_state();

// Throws as TeamScope's constructor promises.
void check_new_scope(int threads);

// Runs the loop on the calling thread and returns true where there is nothing to share: an empty
// loop, a team of one, or a single multiple.
bool run_alone(int64_t count, int64_t multiple, const void* context, RangeBody body);

// The calling thread is a team of one until destroyed.
class SoloScope {
 public:
  SoloScope() : size_(team_state().size) { team_state().size = 1; }
  ~SoloScope() { team_state().size = size_; }
  SoloScope(const SoloScope&) = delete;
  SoloScope& operator=(const SoloScope&) = delete;

 private:
  const int size_;
};

}  // namespace strata::internal
