#include "kernels/device/queue_fault.h"

#include <utility>

namespace strata {

void QueueFault::set(uint64_t point, std::exception_ptr error) noexcept {
  const std::lock_guard lock(mutex_);
  if (point >= point_.load(std::memory_order_relaxed)) return;
  error_ = std::move(error);
  point_.store(point, std::memory_order_release);
}

void QueueFault::throw_if_behind(uint64_t point) const {
  if (point < point_.load(std::memory_order_acquire)) return;
  std::exception_ptr error;
  {
    const std::lock_guard lock(mutex_);
    error = error_;
  }
  std::rethrow_exception(error);
}

}  // namespace strata
