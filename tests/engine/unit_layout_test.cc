#include "engine/zero/unit_layout.h"

#include <gtest/gtest.h>

#include "strata/error.h"
#include "tests/engine/tiny_run.h"

namespace strata::engine {
namespace {

class LayoutTest : public testing::TestWithParam<int> {
 protected:
  ModelLayout layout_{models::gpt2(testing_support::tiny_gpt2()), {0, GetParam()}};
};

TEST_P(LayoutTest, ParametersDoNotOverlapAndShardsAreWholeGrains) {
  int64_t grains = 0;
  for (const Unit& unit : layout_.units()) {
    int64_t end = 0;
    for (const FlatParameter& parameter : unit.trainable.parameters) {
      EXPECT_GE(parameter.offset, end);
      EXPECT_LT(parameter.offset - end, kParamAlignNumel);
      EXPECT_EQ(parameter.offset % kParamAlignNumel, 0);
      EXPECT_EQ(parameter.spec.weight_decay, parameter.offset < unit.trainable.decay_numel);
      end = parameter.offset + parameter.numel();
    }
    EXPECT_EQ(unit.trainable.content_numel, end);
    EXPECT_EQ(unit.trainable.numel % (kGrainNumel * GetParam()), 0);
    EXPECT_LT(unit.trainable.numel - end, kGrainNumel * GetParam());
    EXPECT_EQ(unit.trainable.first_grain, grains);
    grains += unit.trainable.shard().grains();
  }
  EXPECT_EQ(layout_.trainable_grains(), grains);
}

// Over all ranks, the elements that decay are exactly the parameters that decay.
TEST_P(LayoutTest, SegmentsOfAllRanksCoverTheDecayedParametersOnce) {
  int64_t decayed = 0;
  for (int rank = 0; rank < GetParam(); ++rank) {
    int64_t next = 0;
    const ModelLayout layout(models::gpt2(testing_support::tiny_gpt2()), {rank, GetParam()});
    for (const Segment& segment : segment_table(layout)) {
      EXPECT_EQ(segment.begin, next);
      EXPECT_LT(segment.begin, segment.end);
      next = segment.end;
      if (segment.weight_decay) decayed += segment.end - segment.begin;
    }
    EXPECT_EQ(next, layout_.trainable_grains() * kGrainNumel);
  }
  int64_t expected = 0;
  for (const Unit& unit : layout_.units()) expected += unit.trainable.decay_numel;
  EXPECT_EQ(decayed, expected);
}

// Offsets in a flat buffer do not depend on the world, so neither does the order of the digest.
TEST_P(LayoutTest, OffsetsAreThoseOfOneRank) {
  const ModelLayout one(models::gpt2(testing_support::tiny_gpt2()), {});
  for (size_t u = 0; u < one.units().size(); ++u) {
    const auto& mine = layout_.units()[u].trainable.parameters;
    const auto& theirs = one.units()[u].trainable.parameters;
    ASSERT_EQ(mine.size(), theirs.size());
    for (size_t p = 0; p < mine.size(); ++p) EXPECT_EQ(mine[p].offset, theirs[p].offset);
  }
}

INSTANTIATE_TEST_SUITE_P(Worlds, LayoutTest, testing::Values(1, 2, 3, 4));

TEST(LayoutNamesTest, TheSharedEmbeddingHasOneOwner) {
  const ModelLayout layout(models::gpt2(testing_support::tiny_gpt2()), {});
  const ParameterRef ref = layout.find("transformer.wte.weight");
  EXPECT_EQ(ref.unit, 0);
  const auto& head = layout.units().back();
  EXPECT_EQ(head.needs, (std::vector<int>{static_cast<int>(layout.units().size()) - 1, 0}));
  EXPECT_THROW(layout.find("transformer.wte.bias"), ConfigError);
}

}  // namespace
}  // namespace strata::engine
