// Counts every byte and every wait, and keeps a trace.
//
// Recording is one lock-free claim of a slot in a fixed buffer and a few relaxed additions; a full
// buffer drops events and counts them. Totals are always exact.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "strata/plan.h"
#include "strata/tier.h"
#include "strata/traffic.h"

namespace strata::offload {

class Recorder final : public TrafficSink {
 public:
  // Keeps up to `trace_events` events; 0 keeps none.
  explicit Recorder(size_t trace_events);

  // Any thread.
  void record(const TrafficRecord& record) noexcept override;

  // Bytes moved since the start, by Activity nvme_read .. comm. Exact once the work that moved
  // them was waited for.
  LinkBytes link_bytes() const;
  // The same for one state kind.
  LinkBytes link_bytes(StateKind kind) const;
  // The same for one account (TrafficTag).
  LinkBytes link_bytes(Account account) const;
  // Nanoseconds that something stood still with this label since the start.
  int64_t waited_ns(std::string_view label) const;

  uint64_t dropped_events() const;
  // Chrome trace format (JSON object with "traceEvents"), one lane a queue or engine, the rank as
  // process, so that ranks' traces can be merged. Call while nothing records. Throws IoError.
  void write_trace(const std::string& path, int rank = 0) const;

 private:
  struct WaitCounter {
    std::atomic<const char*> label = nullptr;
    std::atomic<int64_t> ns = 0;
  };
  static constexpr size_t kWaitLabels = 32;

  // Of one link, by state kind.
  using KindBytes = std::array<std::atomic<uint64_t>, kStateKindCount>;

  void add_wait(const TrafficRecord& record) noexcept;

  std::array<std::array<KindBytes, kLinkCount>, kAccountCount> bytes_ = {};  // [account][link]
  std::array<WaitCounter, kWaitLabels> waits_;
  std::vector<TrafficRecord> events_;
  std::atomic<size_t> next_event_ = 0;
};

}  // namespace strata::offload
