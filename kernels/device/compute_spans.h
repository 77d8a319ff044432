// Reports stretches of work on a queue as Activity::compute, and shows them to a profiler.
#pragma once

#include "kernels/device/device.h"
#include "kernels/device/profiler_range.h"
#include "strata/clock.h"
#include "strata/traffic.h"

namespace strata {

// Of one queue. Driven by the thread that enqueues there; must outlive what was enqueued.
class ComputeSpans {
 public:
  ComputeSpans(Queue& queue, TrafficSink& sink)
      : queue_(queue), sink_(sink), launches_(queue.native_handle() != nullptr) {}
  ComputeSpans(const ComputeSpans&) = delete;
  ComputeSpans& operator=(const ComputeSpans&) = delete;

  // What is enqueued between the two is one span. A profiler follows kernels to where they are
  // launched, which is the caller's thread, and host tasks to where they run.
  void begin(const TrafficTag& tag) {
    tag_ = tag;
    queue_.begin_work(tag);
    if (launches_) push_profiler_range(tag);
    queue_.run([this, tag] {
      begin_ns_ = now_ns();
      if (!launches_) push_profiler_range(tag);
    });
  }
  void end() {
    queue_.run([this, tag = tag_] {
      end_ns_ = now_ns();
      if (!launches_) pop_profiler_range();
      sink_.record({Activity::compute, tag, queue_.name(), /*bytes=*/0, begin_ns_, end_ns_});
    });
    if (launches_) pop_profiler_range();
    queue_.begin_work({});
  }
  // When the last span ended. For the queue's tasks.
  int64_t last_end_ns() const { return end_ns_; }

 private:
  Queue& queue_;
  TrafficSink& sink_;
  const bool launches_;   // on a device
  TrafficTag tag_;        // of the span that is being enqueued
  int64_t begin_ns_ = 0;  // the queue's
  int64_t end_ns_ = 0;    // likewise
};

}  // namespace strata
