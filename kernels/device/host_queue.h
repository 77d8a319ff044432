// A queue on a host thread.
//
// One worker thread, the master of the queue's thread team, takes tasks off a ring of fixed size in
// order. Point p is passed when p operations are done; an event is the number of operations
// enqueued before it. Nothing is allocated after construction.
#pragma once

#include <time.h>

#include <condition_variable>
#include <cstdint>
#include <future>
#include <memory>
#include <mutex>
#include <random>
#include <thread>

#include "kernels/device/device.h"
#include "kernels/device/queue_fault.h"

namespace strata {

class MemoryGuard;

// A random time to sleep before each task. `max_us` 0: none.
struct QueueDelay {
  uint64_t seed = 0;
  int max_us = 0;
};

class HostQueue final : public Queue {
 public:
  // Returns when the worker and its team are running; throws what kept them from it. `traffic` must
  // outlive the queue, and so must `guard`, whose memory its tasks may touch.
  HostQueue(const QueueOptions& options, const QueueDelay& delay, TrafficSink& traffic,
            MemoryGuard* guard = nullptr);
  ~HostQueue() override;
  HostQueue(const HostQueue&) = delete;
  HostQueue& operator=(const HostQueue&) = delete;

  void wait(const Event& event, const TrafficTag& tag) override;
  void run(HostTask task) override;
  void copy(void* dst, const void* src, size_t bytes, CopyDirection direction,
            const TrafficTag& tag) override;
  void fill_zero(void* dst, size_t bytes) override;
  QueueStanding standing() const override;
  void abandon(std::exception_ptr failure) noexcept override;
  bool failed() const override { return fault_.happened(); }
  void finish() noexcept override;
  const char* name() const override { return name_; }

 protected:
  uint64_t record_point() override;
  bool point_reached(uint64_t point) const override;
  void wait_for_point(uint64_t point) const override;

 private:
  struct Operation {
    HostTask task;
    TrafficTag work;
    bool waits = false;
  };

  void enqueue(HostTask task, const TrafficTag& work, bool waits = false);
  void start(const QueueOptions& options, std::promise<void> started);
  void work();
  void execute(HostTask& task, uint64_t point) noexcept;
  void sleep_at_random();
  void wait_and_report(const Event& event, const TrafficTag& tag);

  const char* const name_;
  TrafficSink& traffic_;
  MemoryGuard* const guard_;
  const int max_delay_us_;
  std::mt19937_64 delay_random_;  // the worker's
  QueueFault fault_;

  mutable std::mutex mutex_;
  mutable std::condition_variable work_arrived_;  // or closing_
  mutable std::condition_variable point_passed_;
  // Protected by mutex_. The tasks of slots (done_, enqueued_] of the ring, modulo its size, are
  // the worker's.
  const std::unique_ptr<Operation[]> ring_;
  uint64_t enqueued_ = 0;
  uint64_t done_ = 0;
  bool abandoned_ = false;
  bool closing_ = false;

  std::thread worker_;
  clockid_t cpu_clock_ = CLOCK_THREAD_CPUTIME_ID;  // the worker's
};

}  // namespace strata
