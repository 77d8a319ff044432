// Any program a plan can hold, checked as an interpreter would: parameters are there when they are
// used, gradient slots are not shared by units under way, each gradient lands once a micro-batch.
#include "engine/runtime/program.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "tests/engine/tiny_run.h"

namespace strata::engine {
namespace {

struct Case {
  int64_t layers;
  int micro_batches;
  bool overlap;
  bool keep;
  unsigned gathered_mask;  // which units are gathered, bit u % 8
};

class ProgramTest : public testing::TestWithParam<Case> {
 protected:
  ProgramTest() : layout_(model(GetParam().layers), 0, 1) {
    const size_t units = layout_.units().size();
    for (size_t u = 0; u < units; ++u) {
      gathered_.push_back((GetParam().gathered_mask >> (u % 8)) & 1u);
      keeps_.push_back(GetParam().keep && u % 2 == 0);
    }
  }
  static Model model(int64_t layers) {
    auto config = testing_support::tiny_gpt2();
    config.n_layer = layers;
    return models::gpt2(config);
  }
  Program make(bool training) const {
    return plain_program(
        {layout_, gathered_, keeps_, GetParam().micro_batches, training, GetParam().overlap});
  }
  ModelLayout layout_;
  std::vector<bool> gathered_;
  std::vector<bool> keeps_;
};

TEST_P(ProgramTest, EveryUnitFindsItsParametersAndSlotsHoldThem) {
  const Program program = make(true);
  std::map<int, int> slot_unit;
  for (const Action& action : program.actions) {
    const Unit& unit = layout_.units()[static_cast<size_t>(action.unit)];
    if (action.op == Action::Op::gather) {
      ASSERT_GE(program.window_numel[static_cast<size_t>(action.slot)], unit.numel());
      slot_unit[action.slot] = action.unit;
    } else if (action.op != Action::Op::reduce) {
      for (int need : unit.needs) {
        if (!gathered_[static_cast<size_t>(need)]) continue;
        EXPECT_TRUE(std::any_of(slot_unit.begin(), slot_unit.end(),
                                [&](const auto& entry) { return entry.second == need; }))
            << "unit " << action.unit << " runs without unit " << need;
      }
    }
  }
}

TEST_P(ProgramTest, OrderIsForwardThenBackwardOfEachMicroBatch) {
  const Program program = make(true);
  const int units = static_cast<int>(layout_.units().size());
  std::vector<std::pair<int, int>> expected;
  for (int m = 0; m < GetParam().micro_batches; ++m) {
    for (int u = 0; u < units; ++u) expected.emplace_back(m, u);
    for (int u = units - 1; u >= 0; --u) expected.emplace_back(m, u);
  }
  std::vector<std::pair<int, int>> order;
  for (const Action& action : program.actions) {
    const bool computes = action.op == Action::Op::forward || action.op == Action::Op::backward;
    if (computes) order.emplace_back(action.micro_batch, action.unit);
    if (action.op == Action::Op::backward) {
      const bool kept = action.unit == units - 1 || keeps_[static_cast<size_t>(action.unit)];
      EXPECT_EQ(action.recompute, !kept);
    }
  }
  EXPECT_EQ(order, expected);
}

TEST_P(ProgramTest, GradientSlotsAreHeldByOneUnitAndLandOnceAMicroBatch) {
  const Program program = make(true);
  std::map<int, int> holder;  // slot -> unit
  std::map<std::pair<int, int>, int> landed;
  for (const Action& action : program.actions) {
    const Unit& unit = layout_.units()[static_cast<size_t>(action.unit)];
    if (action.op == Action::Op::backward) {
      for (const ParameterRef& ref : unit.parameters) {
        const int slot = program.grad_slot[static_cast<size_t>(ref.unit)];
        ASSERT_GE(slot, 0);
        EXPECT_GE(program.grad_slot_numel[static_cast<size_t>(slot)],
                  layout_.units()[static_cast<size_t>(ref.unit)].trainable.numel);
        const auto [entry, taken] = holder.emplace(slot, ref.unit);
        EXPECT_EQ(entry->second, ref.unit) << "slot " << slot << " is held by another unit";
      }
    } else if (action.op == Action::Op::reduce) {
      EXPECT_EQ(holder.at(action.slot), action.unit);
      holder.erase(action.slot);
      ++landed[{action.micro_batch, action.unit}];
    }
  }
  EXPECT_TRUE(holder.empty());
  EXPECT_EQ(landed.size(), layout_.units().size() * static_cast<size_t>(GetParam().micro_batches));
  for (const auto& [key, count] : landed) EXPECT_EQ(count, 1);
}

TEST_P(ProgramTest, EvaluationOnlyGoesForward) {
  for (const Action& action : make(false).actions) {
    EXPECT_TRUE(action.op == Action::Op::gather || action.op == Action::Op::forward);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, ProgramTest,
                         testing::Values(Case{1, 1, true, false, 0xff}, Case{2, 3, true, true, 0},
                                         Case{6, 2, true, false, 0xff},
                                         Case{6, 2, false, true, 0xff},
                                         Case{7, 3, true, true, 0b10110101},
                                         Case{12, 1, true, false, 0xff}));

// In the window, a unit that is used again soon is not brought twice.
TEST(ProgramTraffic, TheLastUnitStaysForItsBackward) {
  auto config = testing_support::tiny_gpt2();
  config.n_layer = 4;
  const ModelLayout layout(models::gpt2(config), 0, 1);
  const size_t units = layout.units().size();
  const std::vector<bool> all(units, true);
  const std::vector<bool> none(units, false);
  const Program program = plain_program({layout, all, none, 1, true, true});
  std::map<int, int> gathers;
  for (const Action& action : program.actions) {
    if (action.op == Action::Op::gather) ++gathers[action.unit];
  }
  EXPECT_EQ(gathers.at(static_cast<int>(units) - 1), 1) << "head";
  EXPECT_LE(gathers.at(0), 3) << "embedding: first, for the head, and last";
  for (int block = 1; block <= 3; ++block) EXPECT_EQ(gathers.at(block), 2) << block;
  EXPECT_LE(program.window_numel.size(), 4u);
}

}  // namespace
}  // namespace strata::engine
