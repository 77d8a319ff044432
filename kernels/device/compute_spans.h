// Reports stretches of work on a queue as Activity::compute.
#pragma once

#include "kernels/device/device.h"
#include "strata/clock.h"
#include "strata/traffic.h"

namespace strata {

// Of one queue. Driven by the thread that enqueues there; must outlive what was enqueued.
class ComputeSpans {
 public:
  ComputeSpans(Queue& queue, TrafficSink& sink) : queue_(queue), sink_(sink) {}
  ComputeSpans(const ComputeSpans&) = delete;
  ComputeSpans& operator=(const ComputeSpans&) = delete;

  // What is enqueued between the two is one span.
  void begin() {
    queue_.run([this] { begin_ns_ = now_ns(); });
  }
  void end(const TrafficTag& tag) {
    queue_.run([this, tag] {
      end_ns_ = now_ns();
      sink_.record({Activity::compute, tag, queue_.name(), /*bytes=*/0, begin_ns_, end_ns_});
    });
  }
  // When the last span ended. For the queue's tasks.
  int64_t last_end_ns() const { return end_ns_; }

 private:
  Queue& queue_;
  TrafficSink& sink_;
  int64_t begin_ns_ = 0;  // the queue's
  int64_t end_ns_ = 0;    // likewise
};

}  // namespace strata
