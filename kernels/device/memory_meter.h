// Counts a device's memory against its hard cap. Thread-safe.
#pragma once

#include <cstddef>
#include <mutex>

namespace strata {

class MemoryMeter {
 public:
  explicit MemoryMeter(size_t cap_bytes) : cap_bytes_(cap_bytes) {}
  MemoryMeter(const MemoryMeter&) = delete;
  MemoryMeter& operator=(const MemoryMeter&) = delete;

  // Throws OutOfBudget, and counts nothing, when used + bytes would exceed the cap.
  void reserve(size_t bytes);
  void release(size_t bytes) noexcept;

  size_t cap_bytes() const { return cap_bytes_; }
  size_t used_bytes() const;
  size_t peak_bytes() const;

 private:
  const size_t cap_bytes_;

  mutable std::mutex mutex_;
  // Protected by mutex_.
  size_t used_bytes_ = 0;
  size_t peak_bytes_ = 0;
};

}  // namespace strata
