#include "io/stripe_pattern.h"

#include <gmock/gmock.h>

#include <map>
#include <random>

#include "strata/error.h"

namespace strata::io {
namespace {

using testing::ElementsAre;

struct Tested {
  std::vector<uint32_t> weights;
  uint64_t block_bytes = 0;
};

// Seeded: one to five files, weights of up to nine, small blocks.
Tested draw(std::mt19937_64& random) {
  Tested tested;
  tested.weights.resize(1 + random() % 5);
  for (uint32_t& weight : tested.weights) weight = static_cast<uint32_t>(1 + random() % 9);
  tested.block_bytes = 1 + random() % 13;
  return tested;
}

class StripePatternTest : public testing::TestWithParam<uint64_t> {};

// Byte by byte: each lands behind what its file has already, so nothing is left out or taken twice.
TEST_P(StripePatternTest, FilesFillUpWithoutGapsInOrder) {
  std::mt19937_64 random(GetParam());
  const Tested tested = draw(random);
  const StripePattern pattern(tested.weights, tested.block_bytes);
  std::vector<uint64_t> filled(tested.weights.size(), 0);
  const uint64_t bytes = 1000 + random() % 1000;
  for (uint64_t offset = 0; offset < bytes; ++offset) {
    const StripePattern::Place place = pattern.locate(offset);
    ASSERT_EQ(place.offset, filled[place.file]++) << "byte " << offset;
    ASSERT_EQ(place.bytes, tested.block_bytes - offset % tested.block_bytes);
  }
  for (size_t file = 0; file < filled.size(); ++file) {
    EXPECT_EQ(pattern.file_bytes(file, bytes), filled[file]) << "file " << file;
  }
}

// Nobody gets far ahead of its share: by less than a block a file.
TEST_P(StripePatternTest, FilesTakeTheirSharesOfEveryRun) {
  std::mt19937_64 random(GetParam() + 100);
  const Tested tested = draw(random);
  const StripePattern pattern(tested.weights, 1);
  std::vector<double> blocks(tested.weights.size(), 0);
  for (uint64_t block = 0; block < 500; ++block) {
    ++blocks[pattern.locate(block).file];
    for (size_t file = 0; file < blocks.size(); ++file) {
      const double due = pattern.share(file) * static_cast<double>(block + 1);
      ASSERT_LT(std::abs(blocks[file] - due), static_cast<double>(blocks.size())) << block;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, StripePatternTest, testing::Range<uint64_t>(1, 33));

TEST(StripePattern, OnlyRatiosCount) {
  const std::vector<uint32_t> weights = {6, 3, 9};
  const StripePattern pattern(weights, 4096);
  EXPECT_THAT(pattern.weights(), ElementsAre(2, 1, 3));
  EXPECT_DOUBLE_EQ(pattern.share(2), 0.5);
}

TEST(StripePattern, WeightsFollowBandwidths) {
  const auto weights = [](std::vector<double> bandwidths) { return weights_for(bandwidths); };
  EXPECT_THAT(weights({2e9, 1e9}), ElementsAre(8, 4));
  EXPECT_THAT(weights({1.02e9, 1e9, 0.98e9}), ElementsAre(8, 8, 8));
  EXPECT_THAT(weights({1e6, 7e9}), ElementsAre(1, 8));
}

TEST(StripePattern, ImpossibleNumbersAreRefused) {
  const auto make = [](std::vector<uint32_t> weights, uint64_t block_bytes) {
    return StripePattern(weights, block_bytes);
  };
  EXPECT_THROW(make({}, 4096), ConfigError);
  EXPECT_THROW(make({1, 0}, 4096), ConfigError);
  EXPECT_THROW(make({1, 1025}, 4096), ConfigError);
  EXPECT_THROW(make({1, 1}, 0), ConfigError);
}

}  // namespace
}  // namespace strata::io
