// Random whole numbers, for what is drawn of a data set.
#pragma once

#include <array>
#include <cstdint>

namespace strata::engine {

// A number in [0, bound), bound at most 2^32, from random bits. Chances differ from each other by
// at most 2^-8 of themselves: 32 bits do for bounds up to 2^24, larger ones take 64.
constexpr int64_t below(const std::array<uint32_t, 4>& bits, int64_t bound) {
  const auto factor = static_cast<uint64_t>(bound);
  const uint64_t carry = bound > (int64_t{1} << 24) ? (bits[1] * factor) >> 32 : 0;
  return static_cast<int64_t>((bits[0] * factor + carry) >> 32);
}

}  // namespace strata::engine
