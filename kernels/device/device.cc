#include "kernels/device/device.h"

#include <utility>

namespace strata {

MemoryBlock& MemoryBlock::operator=(MemoryBlock&& other) noexcept {
  if (this != &other) {
    reset();
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    owner_ = std::exchange(other.owner_, nullptr);
    release_ = std::exchange(other.release_, nullptr);
  }
  return *this;
}

void MemoryBlock::reset() noexcept {
  if (release_ != nullptr) release_(owner_, data_, bytes_);
  data_ = nullptr;
  bytes_ = 0;
  owner_ = nullptr;
  release_ = nullptr;
}

}  // namespace strata
