#include "kernels/ops/random.h"

#include <cmath>
#include <numbers>
#include <utility>

#include "kernels/device/thread_team.h"

namespace strata::ops {
namespace {

// Two independent standard normal values from 128 random bits.
std::pair<double, double> normal_pair(const std::array<uint32_t, 4>& bits) {
  const auto uniform = [](uint32_t high, uint32_t low) {  // 53 bits, in [0, 1)
    return static_cast<double>(((uint64_t{high} << 32) | low) >> 11) * 0x1p-53;
  };
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform(bits[0], bits[1])));
  const double angle = 2.0 * std::numbers::pi * uniform(bits[2], bits[3]);
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

}  // namespace

void fill_normal(float* out, int64_t first, int64_t numel, float stddev, uint64_t seed,
                 uint64_t stream) {
  const Philox philox{seed};
  // Elements 2k and 2k+1 share counter k.
  const int64_t first_pair = first / 2;
  const int64_t pairs = numel > 0 ? (first + numel - 1) / 2 - first_pair + 1 : 0;
  parallel_for(pairs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t pair = first_pair + begin; pair < first_pair + end; ++pair) {
      const auto [even, odd] = normal_pair(philox(static_cast<uint64_t>(pair), stream));
      const int64_t at = 2 * pair - first;
      if (at >= 0) out[at] = static_cast<float>(stddev * even);
      if (at + 1 < numel) out[at + 1] = static_cast<float>(stddev * odd);
    }
  });
}

}  // namespace strata::ops
