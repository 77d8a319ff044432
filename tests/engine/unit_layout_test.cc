#include "engine/zero/unit_layout.h"

#include <gtest/gtest.h>

#include <algorithm>

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

Config config_of_groups() {
  Config config;
  config.optimizer.weight_decay = 0.1;
  config.parameter_groups = {{{"*.bias"}, 0.2, 1.0}, {{"*.h.1.*", "*wpe*"}, {}, 0.5}};
  return config;
}

// Every element has its own parameter's setting, and neighbours with one setting are one segment.
TEST_P(LayoutTest, SegmentsCoverTheShardSpaceWithTheSettingsOfParameters) {
  const Config config = config_of_groups();
  for (int rank = 0; rank < GetParam(); ++rank) {
    const ModelLayout layout(models::gpt2(testing_support::tiny_gpt2()), {rank, GetParam()});
    const auto segments = segment_table(layout, config);
    int64_t next = 0;
    for (const Segment& segment : segments) {
      EXPECT_EQ(segment.begin, next);
      EXPECT_LT(segment.begin, segment.end);
      next = segment.end;
    }
    EXPECT_EQ(next, layout.trainable_grains() * kGrainNumel);
    for (const Unit& unit : layout.units()) {
      const GrainRange shard = unit.trainable.shard();
      for (const FlatParameter& parameter : unit.trainable.parameters) {
        const int64_t at = layout.position(unit.trainable, parameter);
        const int64_t begin = std::max(at, shard.begin * kGrainNumel);
        const int64_t end = std::min(at + parameter.numel(), shard.end * kGrainNumel);
        if (begin >= end) continue;
        const auto holds = [&](const Segment& s) { return s.begin <= begin && end <= s.end; };
        const auto segment = std::find_if(segments.begin(), segments.end(), holds);
        ASSERT_NE(segment, segments.end()) << parameter.spec.name << " is cut";
        EXPECT_EQ(segment->setting, setting_of(parameter.spec, config)) << parameter.spec.name;
      }
    }
  }
}

TEST(SegmentTableTest, WithoutGroupsAUnitHasTwoSettingsAtMost) {
  Config config;
  config.optimizer.weight_decay = 0.1;
  const ModelLayout layout(models::gpt2(testing_support::tiny_gpt2()), {});
  EXPECT_EQ(segment_table(layout, config).size(), 6u);  // embedding 1, blocks 2 each, head 1
  config.optimizer.weight_decay = 0;
  EXPECT_EQ(segment_table(layout, config).size(), layout.units().size());
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
