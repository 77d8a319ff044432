// The thread team on OpenMP.
//
// libgomp keeps a pool of threads a master, so several teams run beside each other. A thread that
// waits for its team spins before it sleeps: for about a millisecond while the process has no more
// OpenMP threads than cores, next to nothing once several teams exceed them. Threads that libgomp
// does not count (I/O, the pump, other processes) then wait for the spinner, and the spinner for
// them: on two busy cores, short loops took 5 to 10 times as long as with OMP_WAIT_POLICY=passive.
// libgomp reads that from the environment when it is loaded, so it is for whoever starts the
// process to set; GOMP_SPINCOUNT sets the spinning itself.
#include <omp.h>

#include "kernels/device/backends.h"
#include "kernels/device/team_partition.h"
#include "kernels/device/team_state.h"
#include "kernels/device/thread_team.h"

namespace strata {

TeamScope::TeamScope(int threads) : outer_openmp_threads_(omp_get_max_threads()) {
  internal::check_new_scope(threads);
  internal::team_state() = {true, threads};
  omp_set_num_threads(threads);
  // libgomp starts a team's threads in its first region: have that behind us.
  parallel_for(threads, 1, [](int64_t, int64_t) {});
}

TeamScope::~TeamScope() {
  unbind();  // libgomp keeps its threads for the next team
  internal::team_state() = {};
  omp_set_num_threads(outer_openmp_threads_);
}

std::string_view parallel_backend() { return "openmp"; }

void internal::parallel_for_impl(int64_t count, int64_t multiple, const void* context,
                                 RangeBody body) {
  if (run_alone(count, multiple, context, body)) return;
  const int parts = team_size();
#pragma omp parallel num_threads(parts)
  {
    const SoloScope solo;
    // The partition is by the size of the team, even where OMP_THREAD_LIMIT leaves fewer threads.
    for (int part = omp_get_thread_num(); part < parts; part += omp_get_num_threads()) {
      const Range range = partition(count, multiple, part, parts);
      if (!range.empty()) body(context, range.begin, range.end);
    }
  }
}

}  // namespace strata
