// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011). Any element's number can be had without drawing the ones before it, so that
// initial values do not depend on placement, sharding or thread count.
#pragma once

#include <array>
#include <cstdint>

namespace strata::ops {

struct Philox {
  uint64_t key = 0;

  // 128 random bits for a 128-bit counter.
  constexpr std::array<uint32_t, 4> operator()(uint64_t counter, uint64_t stream) const {
    std::array<uint32_t, 4> x = {
        static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32),
        static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)};
    uint32_t k0 = static_cast<uint32_t>(key);
    uint32_t k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
      const uint64_t a = 0xD2511F53ull * x[0];
      const uint64_t b = 0xCD9E8D57ull * x[2];
      x = {static_cast<uint32_t>(b >> 32) ^ x[1] ^ k0, static_cast<uint32_t>(b),
           static_cast<uint32_t>(a >> 32) ^ x[3] ^ k1, static_cast<uint32_t>(a)};
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    return x;
  }
};

// fp32 standard normal values for elements [first, first + numel) of a stream, by Box and Muller's
// transform in double precision, scaled by `stddev`.
void fill_normal(float* out, int64_t first, int64_t numel, float stddev, uint64_t seed,
                 uint64_t stream);

}  // namespace strata::ops
