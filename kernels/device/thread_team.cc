#include "kernels/device/thread_team.h"

#include <atomic>
#include <stdexcept>
#include <system_error>

#include "kernels/device/team_state.h"

namespace strata {

int team_size() { return internal::team_state().size; }

// What throws here is followed by the destructor: the other constructor is through.
TeamScope::TeamScope(int threads, std::span<const CpuPlace> places) : TeamScope(threads) {
  if (places.empty()) return;
  if (places.size() != static_cast<size_t>(threads)) {
    throw std::invalid_argument("a thread team needs a place for each thread, or none");
  }
  for (const CpuPlace& place : places) {
    if (place.empty()) throw std::invalid_argument("a thread's place needs a CPU");
  }
  bind(places);
}

// Every thread binds itself: a loop of one index a thread reaches each of them.
void TeamScope::bind(std::span<const CpuPlace> places) {
  outer_place_ = place_of_this_thread();
  std::atomic<int> error_number = 0;
  parallel_for(team_size(), 1, [&](int64_t begin, int64_t) {
    try {
      bind_this_thread(places[static_cast<size_t>(begin)]);
    } catch (const std::system_error& error) {
      error_number = error.code().value();
    }
  });
  if (error_number == 0) return;
  throw std::system_error(error_number, std::generic_category(), "binding a thread to its CPUs");
}

void TeamScope::unbind() {
  if (outer_place_.empty()) return;
  parallel_for(team_size(), 1, [this](int64_t, int64_t) {
    try {
      bind_this_thread(outer_place_);
    } catch (const std::system_error&) {
      // CPUs that were taken from the process meanwhile: the kernel has moved the thread itself.
    }
  });
}

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
