#include "engine/runtime/checkpoint_copy.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <utility>

#include "strata/clock.h"

namespace strata::engine {
namespace {

constexpr double kLongestPause_ns = 60e9;

// What a copy throws that nobody wants any more, or that has failed.
struct Ended {};

}  // namespace

CheckpointCopy::CheckpointCopy(const std::string& path, Manifest manifest, const Event& durable,
                               const Parts& parts)
    : path_(path),
      manifest_(std::move(manifest)),
      parts_(parts),
      pin_(parts.slots),
      source_{pin_.slot(), parts.queue, Account::checkpoint},
      access_(parts.plan, {parts.state, parts.comm, parts.memory, &source_}),
      writer_(path, access_.checkpoint_contents(), parts.comm) {
  thread_ = std::thread([this, durable] { copy(durable); });
}

CheckpointCopy::~CheckpointCopy() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void CheckpointCopy::copy(const Event& durable) noexcept {
  try {
    durable.wait();
    worked_from_ns_ = now_ns();
    access_.save(writer_, [this] { pace(); });
    writer_.sync();
  } catch (const Ended&) {
  } catch (const std::exception& error) {
    writer_.fail(error.what());
  }
  copied_.store(true, std::memory_order_release);
}

void CheckpointCopy::pace() {
  const int64_t begin_ns = now_ns();
  const uint64_t before = written_bytes_;
  written_bytes_ = writer_.written_bytes();
  writer_.write_back();
  if (writer_.failed()) throw Ended();
  const int64_t end_ns = now_ns();
  parts_.traffic.record({Activity::nvme_write,
                         {StateKind::other, -1, "checkpoint", Account::checkpoint},
                         "checkpoint",
                         written_bytes_ - before,
                         begin_ns,
                         end_ns});
  const auto worked_ns = static_cast<double>(end_ns - worked_from_ns_);
  const std::chrono::duration<double, std::nano> pause(
      std::min(worked_ns * (1 / parts_.share - 1), kLongestPause_ns));
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, pause, [this] { return hurries_ || ends_; });
  if (ends_) throw Ended();
  worked_from_ns_ = now_ns();
}

bool CheckpointCopy::copied() {
  if (!copied_.load(std::memory_order_acquire)) return false;
  pin_.release();
  return true;
}

void CheckpointCopy::wait() {
  {
    const std::lock_guard lock(mutex_);
    hurries_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
  pin_.release();
}

void CheckpointCopy::finish() {
  wait();
  writer_.finish(manifest_);
}

}  // namespace strata::engine
