// Codec layouts: how many bytes a state kind takes in store. A pure table; the arithmetic that
// encodes and decodes lives in kernels/ops.
#pragma once

#include <cstdint>
#include <string_view>

#include "strata/grain.h"

namespace strata {

enum class Codec : uint8_t { fp32 };

constexpr std::string_view name(Codec codec) {
  switch (codec) {
    case Codec::fp32:
      return "fp32";
  }
  return "?";
}

// Bytes that `numel` elements take; `numel` is a multiple of the grain.
constexpr int64_t stored_bytes(Codec codec, int64_t numel) {
  switch (codec) {
    case Codec::fp32:
      return numel * 4;
  }
  return 0;
}

}  // namespace strata
