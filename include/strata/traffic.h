// Where io, devices and collectives report what they did. The recorder in offload implements it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "strata/tier.h"

namespace strata {

// What a span of time was spent on. The first five move bytes and are what `moved` in the
// metrics and the plan's traffic table count.
enum class Activity : uint8_t {
  nvme_read,
  nvme_write,
  h2d,         // host -> device
  d2h,         // device -> host
  comm,        // sent to other ranks
  nvme_flush,  // making writes durable; moves no bytes of its own
  compute,     // a unit's forward or backward, a reduction, an update
  wait,        // a queue or the driver stood still; `label` says for what
};
inline constexpr size_t kLinkCount = 5;
inline constexpr size_t kActivityCount = 8;

constexpr std::string_view name(Activity activity) {
  constexpr std::array<std::string_view, kActivityCount> names = {
      "nvme_read", "nvme_write", "h2d", "d2h", "comm", "nvme_flush", "compute", "wait"};
  return names[static_cast<size_t>(activity)];
}

// What a transfer's bytes are counted as, for comparison with the plan.
enum class Account : uint8_t {
  step,        // what is through when its step, or a verb between steps, ends
  update,      // the optimizer's, whose work may run on under the next step
  checkpoint,  // copied at its own pace, under any number of steps
};
inline constexpr size_t kAccountCount = 3;

// What a transfer or piece of work belongs to. `label` and `lane` must be string literals or
// outlive the sink.
struct TrafficTag {
  StateKind kind = StateKind::other;
  int32_t index = -1;      // unit or sub-group; -1 for none
  const char* label = "";  // what it was for: "gather", "update", ...
  Account account = Account::step;
};

struct TrafficRecord {
  Activity activity = Activity::compute;
  TrafficTag tag;
  const char* lane = "";  // queue or engine it ran on
  uint64_t bytes = 0;
  int64_t begin_ns = 0;  // strata::now_ns()
  int64_t end_ns = 0;
};

// Thread-safe; called from I/O, queue and driver threads on hot paths, so it neither blocks nor
// allocates nor throws.
class TrafficSink {
 public:
  virtual ~TrafficSink() = default;
  virtual void record(const TrafficRecord& record) noexcept = 0;
};

// Drops everything; for tests and for parts used alone.
class NullTrafficSink final : public TrafficSink {
 public:
  void record(const TrafficRecord&) noexcept override {}
};

}  // namespace strata
