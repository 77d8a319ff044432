// Element types and their sizes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace strata {

enum class DType : uint8_t { fp32, bf16, fp16, int32 };

constexpr size_t size_bytes(DType dtype) {
  constexpr std::array<size_t, 4> sizes = {4, 2, 2, 4};
  return sizes[static_cast<size_t>(dtype)];
}

constexpr std::string_view name(DType dtype) {
  constexpr std::array<std::string_view, 4> names = {"fp32", "bf16", "fp16", "int32"};
  return names[static_cast<size_t>(dtype)];
}

}  // namespace strata
