// The one seam through which Strata's own code uses several cores.
//
// A team belongs to one master thread, which opens a TeamScope for as long as it computes; teams
// of different masters run at the same time. Two implementations, chosen at configure time
// (STRATA_PARALLEL): OpenMP, and a small team of our own threads that ThreadSanitizer can follow
// (libgomp is opaque to it). Both cut the work by the same partition (team_partition.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "kernels/device/cpu_topology.h"

namespace strata {

// Makes the calling thread the master of `threads` threads, itself included, until destroyed. The
// other threads are started here. Also fixes, for this thread, how many threads OpenMP libraries
// (oneDNN) use, because their bits depend on it: `threads`, or 1 where the team is of our own
// threads. Throws std::invalid_argument when `threads` is below 1, there is another number
// of places, or one is empty, std::logic_error when this thread has a scope already,
// std::system_error when a thread cannot be started or bound.
class TeamScope {
 public:
  explicit TeamScope(int threads);
  // Thread i, the calling one first, runs in places[i]: as ranges are dealt to threads in order, a
  // loop over the same memory finds each part with the same CPUs every time. Without places the
  // system chooses.
  TeamScope(int threads, std::span<const CpuPlace> places);
  ~TeamScope();
  TeamScope(const TeamScope&) = delete;
  TeamScope& operator=(const TeamScope&) = delete;

 private:
  void bind(std::span<const CpuPlace> places);
  void unbind();  // as the calling thread was before bind(); all were so

  int outer_openmp_threads_;
  CpuPlace outer_place_;  // empty: not bound
};

// Threads of the calling thread's team; 1 outside any TeamScope, and inside parallel_for's body.
int team_size();

namespace internal {
using RangeBody = void (*)(const void* context, int64_t begin, int64_t end) noexcept;
void parallel_for_impl(int64_t count, int64_t multiple, const void* context, RangeBody body);
}  // namespace internal

// Calls body(begin, end) over a static partition of [0, count): at most one contiguous range a
// thread, each boundary a multiple of `multiple` (at least 1) except the last. Returns when all
// ranges are done. Empty ranges are not called for. An exception that leaves body ends the program.
// Runs on the calling thread alone outside a TeamScope and inside another parallel_for. No
// allocation.
template <typename Body>
void parallel_for(int64_t count, int64_t multiple, const Body& body) {
  static_assert(std::is_invocable_v<const Body&, int64_t, int64_t>);
  internal::parallel_for_impl(count, multiple, &body,
                              [](const void* context, int64_t begin, int64_t end) noexcept {
                                (*static_cast<const Body*>(context))(begin, end);
                              });
}

}  // namespace strata
