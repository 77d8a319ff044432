// Any program a plan can hold, checked as an interpreter would: what a compute reads is there, no
// buffer is shared by two that are under way, each gradient is reduced once a micro-batch.
#include "engine/runtime/program.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <utility>

#include "tests/engine/tiny_run.h"

namespace strata::engine {
namespace {

using Op = Action::Op;
using UnitMicroBatch = std::pair<int, int>;

struct Case {
  int64_t layers;
  int micro_batches;
  UnitOrder order;
  bool overlap;
  bool keep;               // the activations of every other unit
  unsigned gathered_mask;  // which units are gathered, bit u % 8; of the others, odd ones are
                           // completed
  int ahead = 1;
  bool recycle = true;
  GradientSums sums = GradientSums::none;
  unsigned stored_mask = 0;  // which units' outputs wait for backward elsewhere
  int64_t tiles = 1;
};

constexpr auto kPlain = UnitOrder::plain;
constexpr auto kVertical = UnitOrder::vertical;

class ProgramTest : public testing::TestWithParam<Case> {
 protected:
  ProgramTest()
      : layout_(model(GetParam().layers, GetParam().tiles), {}),
        input_(testing_support::program_input(layout_)) {
    const Case& c = GetParam();
    const auto bit = [](unsigned mask, size_t u) { return ((mask >> (u % 8)) & 1u) != 0; };
    for (size_t u = 0; u < layout_.units().size(); ++u) {
      input_.access[u] = bit(c.gathered_mask, u) ? ParameterAccess::gathered
                         : u % 2 == 1            ? ParameterAccess::completed
                                                 : ParameterAccess::in_place;
      input_.keeps_saved[u] = c.keep && u % 2 == 0;
      input_.output_bytes[u] = 100 + u % 3;
      input_.checkpoint_tier[u] = bit(c.stored_mask, u) ? Tier::host : Tier::device;
    }
    input_.micro_batches = c.micro_batches;
    input_.order = c.order;
    input_.overlap = c.overlap;
    input_.gather_ahead = c.ahead;
    input_.recycle_gradients = c.recycle;
    input_.sums = c.sums;
    program_ = make_program(input_);
  }
  static Model model(int64_t layers, int64_t tiles) {
    auto config = testing_support::tiny_gpt2();
    config.n_layer = layers;
    return models::gpt2(config, tiles);
  }
  const Unit& of(const Action& action) const {
    return layout_.units()[static_cast<size_t>(action.unit)];
  }
  int units() const { return static_cast<int>(layout_.units().size()); }
  bool is_of_last_layer(const Unit& unit) const {
    return unit.layer == layout_.units().back().layer;
  }
  static bool has_tiles(const Unit& unit) { return unit.first_tile != unit.last_tile; }
  static bool computes(const Action& action) {
    return action.op == Op::forward || action.op == Op::backward;
  }

  ModelLayout layout_;
  ProgramInput input_;
  Program program_;
};

TEST_P(ProgramTest, EveryUnitFindsItsParametersAndSlotsHoldThem) {
  std::map<int, int> slot_unit;
  std::map<int, int> completions;
  for (const Action& action : program_.actions) {
    const Unit& unit = layout_.units()[static_cast<size_t>(action.unit)];
    if (action.op == Op::gather && action.slot >= 0) {
      ASSERT_GE(program_.window_numel[static_cast<size_t>(action.slot)], unit.numel());
      slot_unit[action.slot] = action.unit;
    } else if (action.op == Op::gather) {
      ++completions[action.unit];
    } else if (computes(action)) {
      for (int need : unit.needs) {
        const ParameterAccess access = input_.access[static_cast<size_t>(need)];
        const bool in_slot = std::any_of(slot_unit.begin(), slot_unit.end(),
                                         [&](const auto& entry) { return entry.second == need; });
        EXPECT_EQ(in_slot, access == ParameterAccess::gathered) << action.unit << " " << need;
        EXPECT_EQ(completions.contains(need), access == ParameterAccess::completed);
      }
    }
  }
  for (const auto& [unit, times] : completions) EXPECT_EQ(times, 1) << unit;
}

TEST_P(ProgramTest, OrderIsPlainOrVertical) {
  std::vector<std::pair<Op, UnitMicroBatch>> expected;
  const int last = units() - 1;
  const int micro_batches = GetParam().micro_batches;
  const auto turn = [&](int m) {
    expected.push_back({Op::forward, {last, m}});
    expected.push_back({Op::backward, {last, m}});
  };
  if (GetParam().order == kPlain) {
    for (int m = 0; m < micro_batches; ++m) {
      for (int u = 0; u < last; ++u) expected.push_back({Op::forward, {u, m}});
      turn(m);
      for (int u = last - 1; u >= 0; --u) expected.push_back({Op::backward, {u, m}});
    }
  } else {
    for (int u = 0; u < last; ++u) {
      for (int m = 0; m < micro_batches; ++m) expected.push_back({Op::forward, {u, m}});
    }
    for (int m = 0; m < micro_batches; ++m) turn(m);
    for (int u = last - 1; u >= 0; --u) {
      for (int m = 0; m < micro_batches; ++m) expected.push_back({Op::backward, {u, m}});
    }
  }
  std::vector<std::pair<Op, UnitMicroBatch>> order;
  for (const Action& action : program_.actions) {
    if (computes(action)) order.push_back({action.op, {action.unit, action.micro_batch}});
    if (action.op != Op::backward) continue;
    const bool kept = action.unit == last || input_.keeps_saved[static_cast<size_t>(action.unit)];
    EXPECT_EQ(action.recompute, !kept);
  }
  EXPECT_EQ(order, expected);
}

TEST_P(ProgramTest, GradientSlotsHaveOneHolderAndAreReducedOnceAMicroBatch) {
  std::map<int, UnitMicroBatch> holder;  // by slot
  std::map<UnitMicroBatch, int> reduced;
  for (const Action& action : program_.actions) {
    const int m = action.micro_batch;
    if (action.op == Op::backward) {
      for (const ParameterRef& ref : layout_.units()[static_cast<size_t>(action.unit)].parameters) {
        const int slot = program_.grad_slot_of(ref.unit, m);
        ASSERT_GE(slot, 0);
        EXPECT_GE(program_.grad_slot_numel[static_cast<size_t>(slot)],
                  layout_.units()[static_cast<size_t>(ref.unit)].trainable.numel);
        const auto entry = holder.emplace(slot, UnitMicroBatch{ref.unit, m}).first;
        EXPECT_EQ(entry->second, UnitMicroBatch(ref.unit, m)) << "slot " << slot;
      }
    } else if (action.op == Op::reduce) {
      EXPECT_EQ(holder.at(action.slot), UnitMicroBatch(action.unit, m));
      holder.erase(action.slot);
      ++reduced[{action.unit, m}];
    }
  }
  EXPECT_TRUE(holder.empty());
  const auto& all = layout_.units();
  const auto trainable = std::count_if(all.begin(), all.end(),
                                       [](const Unit& unit) { return unit.trainable.numel > 0; });
  EXPECT_EQ(reduced.size(), static_cast<size_t>(trainable * GetParam().micro_batches));
  for (const auto& [key, count] : reduced) EXPECT_EQ(count, 1);
  if (GetParam().recycle) return;
  // Whole gradients: nobody takes another unit's slot.
  std::map<int, int> owner;
  for (int m = 0; m < GetParam().micro_batches; ++m) {
    for (int u = 0; u < units(); ++u) {
      if (all[static_cast<size_t>(u)].trainable.numel == 0) continue;
      EXPECT_EQ(owner.emplace(program_.grad_slot_of(u, m), u).first->second, u);
    }
  }
}

TEST_P(ProgramTest, SumsAreHeldFromTheFirstMicroBatchToTheLast) {
  std::map<int, int> holder;  // by buffer: unit
  for (const Action& action : program_.actions) {
    if (action.op != Op::reduce || GetParam().sums == GradientSums::none) continue;
    const int buffer = program_.sum_slot[static_cast<size_t>(action.unit)];
    ASSERT_GE(buffer, 0);
    EXPECT_GE(program_.sum_slot_numel[static_cast<size_t>(buffer)],
              layout_.units()[static_cast<size_t>(action.unit)].trainable.numel);
    if (action.micro_batch == 0) {
      EXPECT_FALSE(holder.contains(buffer));
      holder[buffer] = action.unit;
    }
    EXPECT_EQ(holder.at(buffer), action.unit);
    if (action.micro_batch == GetParam().micro_batches - 1) holder.erase(buffer);
  }
  EXPECT_TRUE(holder.empty());
}

// What a layer's tiles have written together: of the last of them and a micro-batch, so many parts.
struct Written {
  UnitMicroBatch by;
  int tiles = 0;

  bool operator==(const Written&) const = default;
};

Written all_of(const ModelLayout& layout, int last_tile, int micro_batch) {
  const Unit& unit = layout.units()[static_cast<size_t>(last_tile)];
  return {{last_tile, micro_batch}, last_tile - unit.first_tile + 1};
}

TEST_P(ProgramTest, ActivationsAreWhereTheyAreRead) {
  std::map<int, Written> place;  // what it holds
  std::map<UnitMicroBatch, int> saved;
  for (const Action& action : program_.actions) {
    const int m = action.micro_batch;
    const Unit& unit = of(action);
    if (computes(action)) {
      EXPECT_EQ(action.input >= 0, unit.input_unit() >= 0);
      if (action.input >= 0) {
        EXPECT_EQ(place.at(action.input), all_of(layout_, unit.input_unit(), m));
      }
      // The last layer's tiles read what they have written; without tiles it writes none.
      const bool reads_own = is_of_last_layer(unit) && has_tiles(unit);
      const bool writes = action.op == Op::forward && (!is_of_last_layer(unit) || reads_own);
      const bool reads = action.op == Op::backward && reads_own;
      ASSERT_EQ(action.output >= 0, writes || reads);
      if (reads) {
        EXPECT_EQ(place.at(action.output), all_of(layout_, unit.last_tile, m));
      }
    }
    const auto has_room = [&] {
      return program_.place_bytes[static_cast<size_t>(action.output)] >=
             input_.output_bytes[static_cast<size_t>(unit.last_tile)];
    };
    if (action.op == Op::forward && action.output >= 0) {
      EXPECT_NE(action.input, action.output);
      ASSERT_TRUE(has_room());
      Written& output = place[action.output];
      if (action.unit == unit.first_tile) output = {{unit.last_tile, m}, 0};
      EXPECT_EQ(output.by, UnitMicroBatch(unit.last_tile, m));
      ++output.tiles;
    } else if (action.op == Op::save) {
      EXPECT_EQ(place.at(action.output), all_of(layout_, action.unit, m));
      ++saved[{action.unit, m}];
    } else if (action.op == Op::restore) {
      EXPECT_EQ(saved.at({action.unit, m}), 1);
      ASSERT_TRUE(has_room());
      place[action.output] = all_of(layout_, action.unit, m);
    }
  }
  for (const Unit& unit : layout_.units()) {
    if (unit.layer >= layout_.units().back().layer - 1) break;
    const bool elsewhere =
        input_.checkpoint_tier[static_cast<size_t>(unit.last_tile)] != Tier::device;
    EXPECT_EQ(saved.contains({unit.last_tile, 0}), elsewhere) << unit.name;
  }
  // What the last layer reads waits for its backward where it is.
  EXPECT_FALSE(saved.contains({layout_.units().back().input_unit(), 0}));
}

TEST_P(ProgramTest, GradientsOfOutputsAreWhereTheyAreRead) {
  std::map<int, Written> grad;  // what a place holds: the gradient of which output
  for (const Action& action : program_.actions) {
    if (action.op != Op::backward) continue;
    const int m = action.micro_batch;
    const Unit& unit = of(action);
    EXPECT_EQ(action.output_grad >= 0, !is_of_last_layer(unit));
    EXPECT_EQ(action.input_grad >= 0, unit.input_unit() >= 0);
    if (action.output_grad >= 0) {
      // Of as many parts as the next layer has tiles.
      const int next = layout_.units()[static_cast<size_t>(unit.last_tile) + 1].last_tile;
      EXPECT_EQ(grad.at(action.output_grad),
                (Written{{unit.last_tile, m}, all_of(layout_, next, m).tiles}));
    }
    if (action.input_grad < 0) continue;
    EXPECT_NE(action.input_grad, action.output_grad);
    ASSERT_LT(action.input_grad, program_.output_grads);
    Written& input = grad[action.input_grad];
    if (action.unit == unit.last_tile) input = {{unit.input_unit(), m}, 0};
    EXPECT_EQ(input.by, UnitMicroBatch(unit.input_unit(), m));
    ++input.tiles;
  }
}

TEST_P(ProgramTest, EvaluationOnlyGoesForwardThroughTwoPlaces) {
  input_.training = false;
  input_.micro_batches = 1;
  const Program evaluation = make_program(input_);
  for (const Action& action : evaluation.actions) {
    EXPECT_TRUE(action.op == Op::gather || action.op == Op::forward);
  }
  EXPECT_EQ(evaluation.place_bytes.size(), 2u);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, ProgramTest,
    testing::Values(
        Case{1, 1, kPlain, true, false, 0xff}, Case{2, 3, kPlain, true, true, 0},
        Case{6, 2, kPlain, true, false, 0xff}, Case{6, 2, kPlain, false, true, 0xff},
        Case{7, 3, kPlain, true, true, 0b10110101}, Case{12, 1, kPlain, true, false, 0xff, 2},
        Case{6, 3, kPlain, true, false, 0x0f, 2, false, GradientSums::whole, 0xff},
        Case{5, 2, kPlain, false, false, 0xff, 1, false, GradientSums::none, 0b0101},
        Case{1, 4, kVertical, true, false, 0xff}, Case{6, 3, kVertical, true, true, 0xff, 2},
        Case{6, 3, kVertical, false, false, 0b0110, 1, true, GradientSums::shards, 0xff},
        Case{7, 4, kVertical, true, false, 0xff, 3, false, GradientSums::whole, 0b1010},
        Case{2, 2, kPlain, true, true, 0xff, 2, true, GradientSums::none, 0xff, 3},
        Case{3, 3, kVertical, true, false, 0b10110101, 2, true, GradientSums::shards, 0, 2},
        Case{2, 3, kVertical, true, true, 0xff, 1, true, GradientSums::shards, 0xff, 4},
        Case{1, 2, kPlain, false, false, 0xff, 1, false, GradientSums::none, 0xff, 2}));

std::map<int, int> gathers_of(const Program& program) {
  std::map<int, int> gathers;
  for (const Action& action : program.actions) {
    if (action.op == Op::gather) ++gathers[action.unit];
  }
  return gathers;
}

class GatheredProgram : public testing::Test {
 protected:
  GatheredProgram() { input_.access.assign(input_.access.size(), ParameterAccess::gathered); }
  static Model model() {
    auto config = testing_support::tiny_gpt2();
    config.n_layer = 12;
    return models::gpt2(config);
  }
  const ModelLayout layout_{model(), {}};
  ProgramInput input_ = testing_support::program_input(layout_);
  const int head_ = static_cast<int>(layout_.units().size()) - 1;
};

// In the window, a unit that is used again soon is not brought twice.
TEST_F(GatheredProgram, KeepsTheLastUnitForItsBackward) {
  const Program program = make_program(input_);
  const auto gathers = gathers_of(program);
  EXPECT_EQ(gathers.at(head_), 1) << "head";
  EXPECT_LE(gathers.at(0), 3) << "embedding: first, for the head, and last";
  for (int block = 1; block <= 8; ++block) EXPECT_EQ(gathers.at(block), 2) << block;
  EXPECT_LE(program.window_numel.size(), 4u);
}

// Vertically, parameters travel as often as for one micro-batch.
TEST_F(GatheredProgram, BringsParametersOnceForAllMicroBatches) {
  const auto once = gathers_of(make_program(input_));
  ASSERT_EQ(once.at(3), 2);
  input_.micro_batches = 4;
  const auto plain = gathers_of(make_program(input_));
  input_.order = UnitOrder::vertical;
  EXPECT_EQ(gathers_of(make_program(input_)), once);
  for (int block = 3; block <= 8; ++block) EXPECT_EQ(plain.at(block), 4 * once.at(block));
}

TEST_F(GatheredProgram, HoldsNoMoreThanItsBoundsAhead) {
  const int64_t block = layout_.units()[1].numel();
  const auto live = [&](int64_t prefetch, int64_t max_live) {
    input_.gather_ahead = 3;
    input_.prefetch_numel = prefetch;
    input_.max_live_numel = max_live;
    return make_program(input_).window_numel.size();
  };
  const int64_t any = int64_t{1} << 40;
  const size_t least = live(0, any);
  EXPECT_GT(live(3 * block, any), least);
  EXPECT_EQ(live(3 * block, block), least);
}

}  // namespace
}  // namespace strata::engine
