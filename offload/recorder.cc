#include "offload/recorder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>

#include "strata/error.h"

namespace strata::offload {
namespace {

bool same_label(const char* a, std::string_view b) { return a != nullptr && b == a; }

}  // namespace

Recorder::Recorder(size_t trace_events) : events_(trace_events) {}

void Recorder::record(const TrafficRecord& record) noexcept {
  const auto activity = static_cast<size_t>(record.activity);
  if (activity < kLinkCount) {
    KindBytes& of_link = bytes_[static_cast<size_t>(record.tag.account)][activity];
    of_link[static_cast<size_t>(record.tag.kind)].fetch_add(record.bytes,
                                                            std::memory_order_relaxed);
  }
  if (record.activity == Activity::wait) add_wait(record);
  if (events_.empty()) return;
  const size_t slot = next_event_.fetch_add(1, std::memory_order_relaxed);
  if (slot < events_.size()) events_[slot] = record;
}

void Recorder::add_wait(const TrafficRecord& record) noexcept {
  for (WaitCounter& counter : waits_) {
    const char* label = counter.label.load(std::memory_order_acquire);
    if (label == nullptr &&
        counter.label.compare_exchange_strong(label, record.tag.label, std::memory_order_acq_rel)) {
      label = record.tag.label;
    }
    if (!same_label(label, record.tag.label)) continue;
    counter.ns.fetch_add(record.end_ns - record.begin_ns, std::memory_order_relaxed);
    return;
  }
}

LinkBytes Recorder::link_bytes() const {
  return link_bytes(Account::step) + link_bytes(Account::update) + link_bytes(Account::checkpoint);
}

LinkBytes Recorder::link_bytes(Account account) const {
  LinkBytes total = {};
  for (size_t link = 0; link < kLinkCount; ++link) {
    for (const auto& bytes : bytes_[static_cast<size_t>(account)][link]) {
      total[link] += bytes.load(std::memory_order_relaxed);
    }
  }
  return total;
}

LinkBytes Recorder::link_bytes(StateKind kind) const {
  LinkBytes total = {};
  for (const auto& links : bytes_) {
    for (size_t link = 0; link < kLinkCount; ++link) {
      total[link] += links[link][static_cast<size_t>(kind)].load(std::memory_order_relaxed);
    }
  }
  return total;
}

int64_t Recorder::waited_ns(std::string_view label) const {
  for (const WaitCounter& counter : waits_) {
    if (same_label(counter.label.load(std::memory_order_acquire), label)) {
      return counter.ns.load(std::memory_order_relaxed);
    }
  }
  return 0;
}

uint64_t Recorder::dropped_events() const {
  const size_t claimed = next_event_.load(std::memory_order_relaxed);
  return claimed > events_.size() ? claimed - events_.size() : 0;
}

void Recorder::write_trace(const std::string& path, int rank) const {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "w"),
                                                             &std::fclose);
  if (file == nullptr) {
    throw IoError(fmt::format("cannot write the trace '{}': {}", path, std::strerror(errno)), path,
                  0, errno);
  }
  const size_t count = std::min(next_event_.load(std::memory_order_relaxed), events_.size());
  std::map<std::string_view, int> lanes;
  for (size_t i = 0; i < count; ++i) {
    lanes.try_emplace(events_[i].lane, static_cast<int>(lanes.size()) + 1);
  }

  std::string out = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n";
  out += fmt::format(
      "{{\"ph\":\"M\",\"pid\":{0},\"name\":\"process_name\",\"args\":{{\"name\":\"rank {0}\"}}}}",
      rank);
  for (const auto& [lane, tid] : lanes) {
    out += fmt::format(
        ",\n{{\"ph\":\"M\",\"pid\":{},\"tid\":{},\"name\":\"thread_name\",\"args\":{{\"name\":"
        "\"{}\"}}}}",
        rank, tid, lane);
  }
  for (size_t i = 0; i < count; ++i) {
    const TrafficRecord& event = events_[i];
    out += fmt::format(
        ",\n{{\"ph\":\"X\",\"pid\":{},\"tid\":{},\"name\":\"{}\",\"cat\":\"{}\",\"ts\":{:.3f},"
        "\"dur\":{:.3f},\"args\":{{\"kind\":\"{}\",\"index\":{},\"bytes\":{}}}}}",
        rank, lanes.at(event.lane), event.tag.label, name(event.activity),
        static_cast<double>(event.begin_ns) / 1e3,
        static_cast<double>(event.end_ns - event.begin_ns) / 1e3, name(event.tag.kind),
        event.tag.index, event.bytes);
    if (out.size() > (1 << 20)) {
      std::fwrite(out.data(), 1, out.size(), file.get());
      out.clear();
    }
  }
  out += fmt::format("\n],\"otherData\":{{\"dropped_events\":{}}}}}\n", dropped_events());
  const bool written = std::fwrite(out.data(), 1, out.size(), file.get()) == out.size() &&
                       std::fflush(file.get()) == 0 && std::ferror(file.get()) == 0;
  if (!written) {
    throw IoError(fmt::format("cannot write the trace '{}': {}", path, std::strerror(errno)), path,
                  0, errno);
  }
}

}  // namespace strata::offload
