// A view of a dense row-major tensor. Owns nothing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "strata/dtype.h"

namespace strata {

inline constexpr size_t kMaxRank = 4;

struct Shape {
  std::array<int64_t, kMaxRank> dims = {};
  size_t rank = 0;

  constexpr Shape() = default;
  constexpr Shape(std::initializer_list<int64_t> list) {
    for (int64_t dim : list) dims[rank++] = dim;
  }
  constexpr int64_t operator[](size_t i) const { return dims[i]; }
  constexpr int64_t numel() const {
    int64_t n = 1;
    for (size_t i = 0; i < rank; ++i) n *= dims[i];
    return n;
  }
  constexpr bool operator==(const Shape&) const = default;
};

// `data` lies in the memory of the device that the surrounding call computes on.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::fp32;
  Shape shape;

  int64_t numel() const { return data == nullptr ? 0 : shape.numel(); }
  size_t bytes() const { return static_cast<size_t>(numel()) * size_bytes(dtype); }
  explicit operator bool() const { return data != nullptr; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

}  // namespace strata
