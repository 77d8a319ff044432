// The failure that poisons a queue, and the point from which it shows. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <limits>
#include <mutex>

namespace strata {

class QueueFault {
 public:
  QueueFault() = default;
  QueueFault(const QueueFault&) = delete;
  QueueFault& operator=(const QueueFault&) = delete;

  // Keeps `error` for all points from `point` on. Of several failures the earliest in queue order
  // stays.
  void set(uint64_t point, std::exception_ptr error) noexcept;

  bool happened() const { return point_.load(std::memory_order_acquire) != kNone; }

  // Throws the failure that shows at `point`, if there is one.
  void throw_if_behind(uint64_t point) const;

 private:
  static constexpr uint64_t kNone = std::numeric_limits<uint64_t>::max();

  // Written under mutex_; read without it by the many who find no failure.
  std::atomic<uint64_t> point_ = kNone;
  mutable std::mutex mutex_;
  std::exception_ptr error_;  // protected by mutex_
};

}  // namespace strata
