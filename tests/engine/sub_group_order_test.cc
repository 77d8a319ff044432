// Orders of sub-groups, against what the program does with their units.
#include "engine/plan/sub_group_order.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/engine/tiny_run.h"

namespace strata::engine {
namespace {

// GPT-2's last unit shares the first one's token table: units 0 .. 3.
class SubGroupOrderTest : public testing::Test {
 protected:
  SubGroupOrderTest() : layout_(models::gpt2(testing_support::tiny_gpt2()), {}) {}

  std::vector<offload::SubGroup> cut(int64_t grains) const {
    const offload::Placement host({0, 1, 0}, layout_.trainable_grains());
    return offload::cut_sub_groups(grains, {host, host, {host, host, host}});
  }
  Program program(bool gathered, int micro_batches) const {
    ProgramInput input = testing_support::program_input(layout_);
    input.micro_batches = micro_batches;
    if (gathered) input.access.assign(input.access.size(), ParameterAccess::gathered);
    return make_program(input);
  }
  // Units that a sub-group has parts of, first to last.
  std::vector<int> units_of(const offload::SubGroup& group) const {
    std::vector<int> units;
    for (size_t u = 0; u < layout_.units().size(); ++u) {
      const GrainRange shard = layout_.units()[u].trainable.shard();
      if (!intersect(shard, group.grains).empty()) units.push_back(static_cast<int>(u));
    }
    return units;
  }
  const ModelLayout layout_;
};

TEST_F(SubGroupOrderTest, RangesCoverAUnitsGrains) {
  const auto groups = cut(3);
  for (const Unit& unit : layout_.units()) {
    const GrainRange shard = unit.trainable.shard();
    const SubGroupRange range = sub_groups_of(groups, shard);
    for (const offload::SubGroup& group : groups) {
      EXPECT_EQ(group.index >= range.begin && group.index < range.end,
                !intersect(group.grains, shard).empty());
    }
  }
  const SubGroupRange nothing = sub_groups_of(groups, {5, 5});
  EXPECT_EQ(nothing.begin, nothing.end);
}

// The first unit, then one block after the other, then the head; a sub-group with parts of several
// goes with the first of them.
TEST_F(SubGroupOrderTest, OfUseFollowsTheForwardPass) {
  for (const bool gathered : {true, false}) {
    for (const int64_t grains : {1, 3, 100}) {
      const auto groups = cut(grains);
      const Program forward = program(gathered, 2);
      const auto order = order_of_use({layout_, groups, forward});
      ASSERT_EQ(order.size(), groups.size());
      EXPECT_TRUE(std::is_sorted(order.begin(), order.end(), [&](int32_t a, int32_t b) {
        const int unit_a = units_of(groups[static_cast<size_t>(a)]).front();
        const int unit_b = units_of(groups[static_cast<size_t>(b)]).front();
        return unit_a != unit_b ? unit_a < unit_b : a < b;
      }));
    }
  }
}

// From the last unit to the first, with which the shared token table completes; a sub-group with
// parts of several units goes with the lowest.
TEST_F(SubGroupOrderTest, OfCompletionFollowsTheBackwardPass) {
  for (const int64_t grains : {1, 3, 100}) {
    const auto groups = cut(grains);
    const Program backward = program(true, 3);
    const auto order = order_of_completion({layout_, groups, backward});
    ASSERT_EQ(order.size(), groups.size());
    EXPECT_TRUE(std::is_sorted(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      const int unit_a = units_of(groups[static_cast<size_t>(a)]).front();
      const int unit_b = units_of(groups[static_cast<size_t>(b)]).front();
      return unit_a != unit_b ? unit_a > unit_b : a < b;
    }));
  }
}

// A table that a later unit refers to completes with the last reduction of the last micro-batch,
// wherever its owner stands.
TEST_F(SubGroupOrderTest, OfCompletionTakesTheLastReduction) {
  const auto groups = cut(1);
  Program program;
  program.actions = {{Action::Op::reduce, 0, 0},
                     {Action::Op::reduce, 3, 0},
                     {Action::Op::reduce, 2, 0},
                     {Action::Op::reduce, 1, 0},
                     {Action::Op::reduce, 0, 1}};
  const auto order = order_of_completion({layout_, groups, program});
  EXPECT_EQ(units_of(groups[static_cast<size_t>(order.front())]), std::vector<int>{3});
  EXPECT_EQ(units_of(groups[static_cast<size_t>(order.back())]), std::vector<int>{0});
}

}  // namespace
}  // namespace strata::engine
