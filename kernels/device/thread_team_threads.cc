// The thread team on threads of our own: mutexes and condition variables only, so that
// ThreadSanitizer sees every edge. Its threads sleep between loops; it never spins.
#include <omp.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <stop_token>
#include <thread>
#include <vector>

#include "kernels/device/backends.h"
#include "kernels/device/team_partition.h"
#include "kernels/device/team_state.h"
#include "kernels/device/thread_team.h"

namespace strata {
namespace {

struct Loop {
  int64_t count = 0;
  int64_t multiple = 1;
  const void* context = nullptr;
  internal::RangeBody body = nullptr;

  void run_part(int part, int parts) const {
    const internal::Range range = internal::partition(count, multiple, part, parts);
    if (!range.empty()) body(context, range.begin, range.end);
  }
};

// The threads of one master beside the master itself. run() is for the master only.
class Team {
 public:
  explicit Team(int size) : size_(size) {
    workers_.reserve(size - 1);
    for (int part = 1; part < size; ++part) {
      workers_.emplace_back([this, part](std::stop_token stop) { work(stop, part); });
    }
  }

  void run(const Loop& loop) {
    {
      const std::lock_guard lock(mutex_);
      loop_ = loop;
      ++generation_;
      running_ = size_ - 1;
    }
    started_.notify_all();
    loop.run_part(0, size_);
    std::unique_lock lock(mutex_);
    finished_.wait(lock, [this] { return running_ == 0; });
  }

 private:
  void work(std::stop_token stop, int part) {
    uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    while (started_.wait(lock, stop, [&] { return generation_ != seen; })) {
      seen = generation_;
      const Loop loop = loop_;
      lock.unlock();
      loop.run_part(part, size_);
      lock.lock();
      if (--running_ == 0) finished_.notify_one();
    }
  }

  const int size_;

  std::mutex mutex_;
  std::condition_variable_any started_;  // a new generation
  std::condition_variable finished_;     // running_ == 0
  // Protected by mutex_.
  Loop loop_;
  uint64_t generation_ = 0;
  int running_ = 0;

  std::vector<std::jthread> workers_;  // last: stopped and joined before the rest goes
};

std::unique_ptr<Team>& own_team() {
  thread_local std::unique_ptr<Team> team;
  return team;
}

}  // namespace

// OpenMP libraries stay on the calling thread: ThreadSanitizer would not see what libgomp's
// threads wait for.
TeamScope::TeamScope(int threads) : outer_openmp_threads_(omp_get_max_threads()) {
  internal::check_new_scope(threads);
  own_team() = std::make_unique<Team>(threads);
  internal::team_state() = {true, threads};
  omp_set_num_threads(1);
}

TeamScope::~TeamScope() {
  unbind();
  own_team().reset();
  internal::team_state() = {};
  omp_set_num_threads(outer_openmp_threads_);
}

std::string_view parallel_backend() { return "threads"; }

void internal::parallel_for_impl(int64_t count, int64_t multiple, const void* context,
                                 RangeBody body) {
  if (run_alone(count, multiple, context, body)) return;
  const SoloScope solo;
  own_team()->run({count, multiple, context, body});
}

}  // namespace strata
