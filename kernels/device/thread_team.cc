#include "kernels/device/thread_team.h"

#include <stdexcept>

#include "kernels/device/team_state.h"

namespace strata {

int team_size() { return internal::team_state().size; }

namespace internal {

TeamState& team_state() {
  thread_local TeamState state;
  return state;
}

void check_new_scope(int threads) {
  if (threads < 1) throw std::invalid_argument("a thread team needs at least one thread");
  if (team_state().in_scope) throw std::logic_error("this thread has a thread team already");
}

bool run_alone(int64_t count, int64_t multiple, const void* context, RangeBody body) {
  if (count <= 0) return true;
  if (team_size() > 1 && count > multiple) return false;
  body(context, 0, count);
  return true;
}

}  // namespace internal
}  // namespace strata
