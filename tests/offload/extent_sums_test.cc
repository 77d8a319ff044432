#include "offload/extent_sums.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "strata/error.h"

namespace strata::offload {
namespace {

constexpr uint64_t kBlock = 4096;

// Sub-groups of 3 and 2 pieces, and one of none between them, in two slots; the first one's last
// piece is the short end of a run.
class ExtentSumsTest : public testing::Test {
 protected:
  static std::vector<std::byte> bytes(uint64_t count, int seed) {
    std::vector<std::byte> result(count);
    for (size_t i = 0; i < result.size(); ++i) {
      result[i] = static_cast<std::byte>(i * 7 + i / 256 + static_cast<size_t>(seed) * 31);
    }
    return result;
  }
  std::string failure(int32_t sub_group, int slot, std::span<const std::byte> data) const {
    try {
      sums_.check(sub_group, slot, 0, data);
    } catch (const CorruptionError& error) {
      return error.what();
    }
    return "";
  }

  const SlotLayout layout_{
      {{{kBlock, kBlock}, {3 * kBlock, 2 * kBlock}}, {}, {{2 * kBlock, kBlock}}}, 2};
  const std::string path_ = "state";
  ExtentSums sums_{layout_, path_, true};
};

TEST_F(ExtentSumsTest, PiecesCountThroughAndPartsOfAnExtentAreWholePieces) {
  EXPECT_EQ(layout_.pieces(), 5u);
  EXPECT_EQ(layout_.file_bytes(), 12 * kBlock);
  EXPECT_EQ(layout_.piece(1).offset, kBlock);
  EXPECT_EQ(layout_.piece(1).bytes, 2 * kBlock);
  EXPECT_EQ(layout_.piece(3).offset, 0u);
  EXPECT_EQ(layout_.sub_group_of(2), 0);
  EXPECT_EQ(layout_.sub_group_of(3), 2);
  const auto part = layout_.pieces(0, kBlock, 3 * kBlock);
  EXPECT_EQ(part.begin, 1u);
  EXPECT_EQ(part.end, 3u);
  EXPECT_EQ(layout_.pieces(1, 0, 0).begin, layout_.pieces(1, 0, 0).end);
  EXPECT_THROW(layout_.pieces(0, 2 * kBlock, kBlock), Error);
  EXPECT_THROW(layout_.pieces(0, kBlock, kBlock), Error);
  EXPECT_THROW(layout_.pieces(0, 0, 5 * kBlock), Error);
}

TEST_F(ExtentSumsTest, WhatWasSealedPassesAndTheUnknownToo) {
  const auto data = bytes(4 * kBlock, 1);
  EXPECT_EQ(failure(0, 0, data), "");
  sums_.seal(0, 0, 0, data);
  EXPECT_EQ(failure(0, 0, data), "");
  sums_.check(0, 0, kBlock, std::span(data).subspan(kBlock, 2 * kBlock));
  EXPECT_EQ(failure(0, 1, bytes(4 * kBlock, 2)), "");
}

// A bit anywhere, and it says which piece.
TEST_F(ExtentSumsTest, EveryFlippedBitIsFound) {
  const auto data = bytes(4 * kBlock, 1);
  sums_.seal(0, 1, 0, data);
  for (const size_t at : {size_t{0}, size_t{4095}, size_t{4096}, size_t{12287}, size_t{16383}}) {
    auto wrong = data;
    wrong[at] ^= std::byte{16};
    const uint64_t piece = at < kBlock ? 0 : at < 3 * kBlock ? kBlock : 3 * kBlock;
    EXPECT_THAT(
        failure(0, 1, wrong),
        testing::AllOf(testing::HasSubstr("'state' at byte " + std::to_string(4 * kBlock + piece)),
                       testing::HasSubstr("damaged")));
  }
}

TEST_F(ExtentSumsTest, TellsStaleFromMisplacedBytes) {
  const auto old_step = bytes(4 * kBlock, 1), new_step = bytes(4 * kBlock, 2);
  const auto other = bytes(2 * kBlock, 3);
  sums_.seal(0, 0, 0, old_step);
  sums_.seal(0, 1, 0, new_step);
  sums_.seal(2, 1, 0, other);
  EXPECT_THAT(failure(0, 1, old_step), testing::HasSubstr("what slot 0 holds"));
  auto torn = new_step;
  std::copy_n(old_step.begin() + 3 * kBlock, kBlock, torn.begin() + 3 * kBlock);
  EXPECT_THAT(failure(0, 1, torn), testing::HasSubstr("what slot 0 holds"));
  auto swapped = new_step;
  std::copy_n(other.begin() + kBlock, kBlock, swapped.begin());
  EXPECT_THAT(failure(0, 1, swapped),
              testing::HasSubstr("what sub-group 2 has in its slot 1 at byte 4096"));
}

TEST_F(ExtentSumsTest, TheJournalsSumsTakeTheTablesPlace) {
  const auto data = bytes(4 * kBlock, 1);
  sums_.seal(0, 0, 0, data);
  const std::vector<uint64_t> kept(sums_.of_slot(0).begin(), sums_.of_slot(0).end());
  sums_.seal(0, 0, 0, bytes(4 * kBlock, 2));
  sums_.forget();
  EXPECT_EQ(failure(0, 0, bytes(4 * kBlock, 3)), "");
  sums_.restore(0, 0, kept);
  EXPECT_EQ(failure(0, 0, data), "");
  EXPECT_NE(failure(0, 0, bytes(4 * kBlock, 2)), "");
}

TEST_F(ExtentSumsTest, ATableThatIsOffLetsEverythingPass) {
  ExtentSums off(layout_, path_, false);
  off.seal(0, 0, 0, bytes(4 * kBlock, 1));
  off.check(0, 0, 0, bytes(4 * kBlock, 2));
}

}  // namespace
}  // namespace strata::offload
