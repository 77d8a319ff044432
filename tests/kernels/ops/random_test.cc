// Any element of a random stream can be had alone, and the streams are what they claim to be.
#include "kernels/ops/random.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/device/thread_team.h"

namespace strata::ops {
namespace {

std::vector<float> normals(int64_t first, int64_t numel, uint64_t seed = 1, uint64_t stream = 0,
                           float stddev = 1) {
  std::vector<float> out(static_cast<size_t>(numel));
  fill_normal(out.data(), first, numel, stddev, seed, stream);
  return out;
}

// Known answers of the authors' Random123 library for philox4x32-10.
TEST(Philox, MatchesThePublishedVectors) {
  const std::array<uint32_t, 4> zeros = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
  EXPECT_EQ(Philox{0}(0, 0), zeros);
  const std::array<uint32_t, 4> ones = {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
  EXPECT_EQ(Philox{~uint64_t{0}}(~uint64_t{0}, ~uint64_t{0}), ones);
}

TEST(FillNormal, AnyPartHasTheBitsOfTheWhole) {
  const std::vector<float> whole = normals(0, 101);
  for (const int64_t first : {0, 1, 2, 7, 100}) {
    for (const int64_t numel : {0, 1, 2, 3, 50}) {
      if (first + numel > 101) continue;
      const std::vector<float> part = normals(first, numel);
      EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + first))
          << first << " + " << numel;
    }
  }
}

TEST(FillNormal, ThreadsDoNotChangeTheBits) {
  const std::vector<float> alone = normals(3, 9999);
  const TeamScope team(3);
  EXPECT_EQ(normals(3, 9999), alone);
}

TEST(FillNormal, SeedsAndStreamsDiffer) {
  EXPECT_NE(normals(0, 8, 1, 0), normals(0, 8, 2, 0));
  EXPECT_NE(normals(0, 8, 1, 0), normals(0, 8, 1, 1));
}

TEST(FillNormal, HasTheMomentsOfANormalDistribution) {
  constexpr int64_t kNumel = 1 << 20;
  double sum = 0, squares = 0, fourth = 0, neighbours = 0, last = 0;
  for (const float raw : normals(0, kNumel, 5, 9, 0.02f)) {
    const double x = raw / 0.02;
    sum += x;
    squares += x * x;
    fourth += x * x * x * x;
    neighbours += x * last;
    last = x;
  }
  // Five standard errors each: 1, sqrt(2), sqrt(96) and 1 over sqrt(n).
  const double n = static_cast<double>(kNumel);
  EXPECT_NEAR(sum / n, 0, 5 / std::sqrt(n));
  EXPECT_NEAR(squares / n, 1, 5 * std::sqrt(2 / n));
  EXPECT_NEAR(fourth / n, 3, 5 * std::sqrt(96 / n));
  EXPECT_NEAR(neighbours / n, 0, 5 / std::sqrt(n));
}

}  // namespace
}  // namespace strata::ops
