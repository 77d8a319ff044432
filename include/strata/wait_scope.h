// Time that a thread of ours stands still, reported as Activity::wait.
#pragma once

#include "strata/clock.h"
#include "strata/traffic.h"

namespace strata {

class WaitScope {
 public:
  // Reports when destroyed. `sink` must outlive the scope; `lane` as in TrafficRecord.
  WaitScope(TrafficSink& sink, const TrafficTag& tag, const char* lane) : sink_(sink) {
    record_.activity = Activity::wait;
    record_.tag = tag;
    record_.lane = lane;
    record_.begin_ns = now_ns();
  }
  ~WaitScope() {
    record_.end_ns = now_ns();
    sink_.record(record_);
  }
  WaitScope(const WaitScope&) = delete;
  WaitScope& operator=(const WaitScope&) = delete;

 private:
  TrafficSink& sink_;
  TrafficRecord record_;
};

}  // namespace strata
