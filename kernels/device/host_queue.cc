#include "kernels/device/host_queue.h"

#include <pthread.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <string>

#include "kernels/device/copy_link.h"
#include "kernels/device/host_memory.h"
#include "kernels/device/memory_guard.h"
#include "kernels/device/profiler_range.h"
#include "kernels/device/thread_team.h"
#include "strata/wait_scope.h"

namespace strata {
namespace {

// One core is through with less than this about as fast as a team that has to be woken first.
constexpr size_t kTeamBytes = size_t{256} << 10;

template <typename Body>
void for_bytes(size_t bytes, const Body& body) {
  if (bytes < kTeamBytes) {
    body(0, bytes);
  } else {
    parallel_for(bytes, kPageBytes, body);
  }
}

void copy_bytes(void* dst, const void* src, size_t bytes) {
  auto* to = static_cast<std::byte*>(dst);
  const auto* from = static_cast<const std::byte*>(src);
  for_bytes(bytes, [=](int64_t begin, int64_t end) {
    std::memcpy(to + begin, from + begin, end - begin);
  });
}

void zero_bytes(void* dst, size_t bytes) {
  auto* to = static_cast<std::byte*>(dst);
  for_bytes(bytes, [=](int64_t begin, int64_t end) { std::memset(to + begin, 0, end - begin); });
}

void name_this_thread(const char* name) {
  constexpr size_t kMaxLength = 15;  // the kernel's
  pthread_setname_np(pthread_self(), std::string(name).substr(0, kMaxLength).c_str());
}

}  // namespace

HostQueue::HostQueue(const QueueOptions& options, const QueueDelay& delay, TrafficSink& traffic,
                     MemoryGuard* guard)
    : name_(options.name),
      traffic_(traffic),
      guard_(guard),
      max_delay_us_(delay.max_us),
      delay_random_(delay.seed),
      ring_(std::make_unique<Operation[]>(kQueueDepth)) {
  std::promise<void> started;
  std::future<void> running = started.get_future();
  worker_ = std::thread(&HostQueue::start, this, std::cref(options), std::move(started));
  try {
    running.get();
  } catch (...) {
    worker_.join();
    throw;
  }
  pthread_getcpuclockid(worker_.native_handle(), &cpu_clock_);
}

HostQueue::~HostQueue() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  work_arrived_.notify_one();
  worker_.join();
}

void HostQueue::run(HostTask task) { enqueue(std::move(task), work_); }

void HostQueue::enqueue(HostTask task, const TrafficTag& work, bool waits) {
  {
    std::unique_lock lock(mutex_);
    const auto has_room = [this] { return enqueued_ - done_ < kQueueDepth; };
    point_passed_.wait(lock, [&] { return has_room() || abandoned_; });
    if (!has_room()) fault_.throw_if_behind(enqueued_);
    ring_[enqueued_ % kQueueDepth] = {std::move(task), work, waits};
    ++enqueued_;
  }
  work_arrived_.notify_one();
}

void HostQueue::wait(const Event& event, const TrafficTag& tag) {
  if (event.queue() == nullptr || event.queue() == this) return;
  enqueue([this, event, tag] { wait_and_report(event, tag); }, tag, /*waits=*/true);
}

void HostQueue::copy(void* dst, const void* src, size_t bytes, CopyDirection direction,
                     const TrafficTag& tag) {
  if (bytes == 0) return;
  const std::optional<Activity> link = link_of(direction);
  if (!link) {
    enqueue([=] { copy_bytes(dst, src, bytes); }, tag);
    return;
  }
  enqueue(
      [=, this, activity = *link] {
        const ProfilerRange range(tag);
        const int64_t begin_ns = now_ns();
        copy_bytes(dst, src, bytes);
        traffic_.record({activity, tag, name_, bytes, begin_ns, now_ns()});
      },
      tag);
}

void HostQueue::fill_zero(void* dst, size_t bytes) {
  run([=] { zero_bytes(dst, bytes); });
}

uint64_t HostQueue::record_point() {
  const std::lock_guard lock(mutex_);
  return enqueued_;
}

bool HostQueue::point_reached(uint64_t point) const {
  {
    const std::lock_guard lock(mutex_);
    if (done_ < point && !abandoned_) return false;
  }
  fault_.throw_if_behind(point);
  return true;
}

void HostQueue::wait_for_point(uint64_t point) const {
  {
    std::unique_lock lock(mutex_);
    point_passed_.wait(lock, [&] { return done_ >= point || abandoned_; });
  }
  fault_.throw_if_behind(point);
}

QueueStanding HostQueue::standing() const {
  timespec cpu = {};
  clock_gettime(cpu_clock_, &cpu);
  QueueStanding standing;
  standing.cpu_ns = cpu.tv_sec * 1'000'000'000 + cpu.tv_nsec;
  const std::lock_guard lock(mutex_);
  standing.ended = done_;
  standing.under_way = done_ < enqueued_;
  if (standing.under_way) {
    const Operation& operation = ring_[done_ % kQueueDepth];
    standing.waits = operation.waits;
    standing.work = operation.work;
  }
  return standing;
}

void HostQueue::abandon(std::exception_ptr failure) noexcept {
  {
    const std::lock_guard lock(mutex_);
    fault_.set(done_ + 1, std::move(failure));
    abandoned_ = true;
  }
  point_passed_.notify_all();
}

void HostQueue::finish() noexcept {
  std::unique_lock lock(mutex_);
  point_passed_.wait(lock, [this] { return done_ == enqueued_; });
}

// The worker's first function. `options` hold until it has started.
void HostQueue::start(const QueueOptions& options, std::promise<void> started) {
  name_this_thread(name_);
  try {
    const TeamScope team(options.threads, options.places);
    started.set_value();
    work();
  } catch (...) {
    started.set_exception(std::current_exception());
  }
}

void HostQueue::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    work_arrived_.wait(lock, [this] { return done_ < enqueued_ || closing_; });
    if (done_ == enqueued_) return;  // closing, and nothing is left
    const uint64_t point = done_ + 1;
    HostTask& task = ring_[done_ % kQueueDepth].task;
    lock.unlock();
    execute(task, point);
    lock.lock();
    done_ = point;
    point_passed_.notify_all();
  }
}

void HostQueue::execute(HostTask& task, uint64_t point) noexcept {
  sleep_at_random();
  if (!fault_.happened()) {
    try {
      const MemoryGuard::Access access(guard_);
      task();
    } catch (...) {
      fault_.set(point, std::current_exception());
    }
  }
  // Before the point passes: what the closure holds must not outlive it.
  task.reset();
}

void HostQueue::sleep_at_random() {
  if (max_delay_us_ == 0) return;
  std::uniform_int_distribution<int> delay_us(0, max_delay_us_ - 1);
  std::this_thread::sleep_for(std::chrono::microseconds(delay_us(delay_random_)));
}

void HostQueue::wait_and_report(const Event& event, const TrafficTag& tag) {
  if (event.reached()) return;
  const int64_t begin_ns = now_ns();
  {
    const MemoryGuard::Pause pause(guard_);
    event.wait();
  }
  record_wait(traffic_, tag, name_, begin_ns, now_ns());
}

}  // namespace strata
