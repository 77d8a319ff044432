// The one seam through which Strata's own code uses several cores.
//
// A team belongs to one master thread, which opens a TeamScope for as long as it computes; teams
// of different masters run at the same time. Two implementations, chosen at configure time
// (STRATA_PARALLEL): OpenMP, and a small team of our own threads that ThreadSanitizer can follow
// (libgomp is opaque to it).
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace strata {

// Makes the calling thread the master of `threads` threads until destroyed. Scopes do not nest.
// Also fixes the number of threads that OpenMP libraries (oneDNN) use when called from this
// thread, because their bits depend on it.
class TeamScope {
 public:
  explicit TeamScope(int threads);
  ~TeamScope();
  TeamScope(const TeamScope&) = delete;
  TeamScope& operator=(const TeamScope&) = delete;
};

// Threads of the calling thread's team; 1 outside any TeamScope.
int team_size();

namespace internal {
using RangeBody = void (*)(const void* context, int64_t begin, int64_t end);
void parallel_for_impl(int64_t count, int64_t multiple, const void* context, RangeBody body);
}  // namespace internal

// Calls body(begin, end) over a static partition of [0, count): one contiguous range a thread,
// each boundary a multiple of `multiple` except the last. Returns when all ranges are done. Ranges
// may be empty, and then body is not called. body must not throw. Runs on the calling thread alone
// outside a TeamScope. No allocation.
template <typename Body>
void parallel_for(int64_t count, int64_t multiple, const Body& body) {
  static_assert(std::is_nothrow_invocable_v<const Body&, int64_t, int64_t> ||
                std::is_invocable_v<const Body&, int64_t, int64_t>);
  internal::parallel_for_impl(count, multiple, &body,
                              [](const void* context, int64_t begin, int64_t end) {
                                (*static_cast<const Body*>(context))(begin, end);
                              });
}

}  // namespace strata
