#include "kernels/device/memory_meter.h"

#include <algorithm>
#include <string>

#include "strata/error.h"

namespace strata {

void MemoryMeter::reserve(size_t bytes) {
  const std::lock_guard lock(mutex_);
  const size_t available_bytes = cap_bytes_ - used_bytes_;
  if (bytes > available_bytes) {
    throw OutOfBudget("device memory: " + std::to_string(bytes) + " bytes are needed and " +
                          std::to_string(available_bytes) + " of the budget of " +
                          std::to_string(cap_bytes_) + " are available",
                      Tier::device, bytes, available_bytes);
  }
  used_bytes_ += bytes;
  peak_bytes_ = std::max(peak_bytes_, used_bytes_);
}

void MemoryMeter::release(size_t bytes) noexcept {
  const std::lock_guard lock(mutex_);
  used_bytes_ -= bytes;
}

size_t MemoryMeter::used_bytes() const {
  const std::lock_guard lock(mutex_);
  return used_bytes_;
}

size_t MemoryMeter::peak_bytes() const {
  const std::lock_guard lock(mutex_);
  return peak_bytes_;
}

}  // namespace strata
