// Time that a thread of ours stands still, reported as Activity::wait.
#pragma once

#include "strata/clock.h"
#include "strata/traffic.h"

namespace strata {

// Reports that `lane` (as in TrafficRecord) stood still from `begin_ns` until `end_ns`.
inline void record_wait(TrafficSink& sink, const TrafficTag& tag, const char* lane,
                        int64_t begin_ns, int64_t end_ns) noexcept {
  sink.record({Activity::wait, tag, lane, /*bytes=*/0, begin_ns, end_ns});
}

// The same for as long as the scope lasts. `sink` must outlive it.
class WaitScope {
 public:
  WaitScope(TrafficSink& sink, const TrafficTag& tag, const char* lane)
      : sink_(sink), tag_(tag), lane_(lane), begin_ns_(now_ns()) {}
  ~WaitScope() { record_wait(sink_, tag_, lane_, begin_ns_, now_ns()); }
  WaitScope(const WaitScope&) = delete;
  WaitScope& operator=(const WaitScope&) = delete;

 private:
  TrafficSink& sink_;
  const TrafficTag tag_;
  const char* const lane_;
  const int64_t begin_ns_;
};

}  // namespace strata
