// Cuts one buffer into aligned tensors.
#pragma once

#include <cstddef>
#include <cstdint>

#include "strata/tensor.h"

namespace strata {

// Hands out pieces one after the other. With a null base it hands out null views and only measures,
// so the code that uses a buffer is also the code that sizes it. Owns nothing.
class Carver {
 public:
  static constexpr size_t kAlignment = 64;

  // `base` is null or aligned to kAlignment.
  explicit Carver(std::byte* base) : base_(base) {}

  TensorView take(DType dtype, const Shape& shape) {
    TensorView view{nullptr, dtype, shape};
    const size_t bytes = static_cast<size_t>(shape.numel()) * size_bytes(dtype);
    if (base_ != nullptr) view.data = base_ + used_bytes_;
    used_bytes_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return view;
  }

  // Bytes for an operation's own use, as a vector of fp32.
  TensorView take_bytes(size_t bytes) {
    return take(DType::fp32, {static_cast<int64_t>((bytes + 3) / 4)});
  }

  size_t used_bytes() const { return used_bytes_; }

 private:
  std::byte* base_;
  size_t used_bytes_ = 0;
};

}  // namespace strata
