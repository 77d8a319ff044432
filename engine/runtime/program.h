// The order of units: one step as a straight-line program.
//
// Made once from the model's layout, before anything is allocated. The plan counts its bytes and
// sizes its buffers from it; the runtime executes it. So the two cannot disagree, and another
// schedule is another order of the same actions, not another runtime.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "engine/zero/unit_layout.h"
#include "strata/tier.h"

namespace strata::engine {

struct Action {
  enum class Op : uint8_t {
    gather,    // bring `unit`'s parameters into window slot `slot`; those of a whole unit (slot -1)
               // are completed where they lie, if an update changed them
    forward,   // run `unit` on `micro_batch`
    backward,  // the same, after recomputing its forward if `recompute`
    reduce,    // `unit`'s local gradients in gradient slot `slot` are complete: sum, land them
    save,      // take `unit`'s output in place `output` to the tier where it waits for backward
    restore,   // bring it back, into place `output`
  };
  Op op = Op::gather;
  int unit = 0;
  int micro_batch = 0;
  int slot = -1;
  bool recompute = false;
  // Places of activations at unit boundaries, and of their gradients; -1: none.
  int input = -1, output = -1;
  int input_grad = -1, output_grad = -1;
};

// Where a unit's parameters are when it computes.
enum class ParameterAccess : uint8_t {
  in_place,   // all of them lie on the device
  completed,  // likewise, when the ranks have gathered what each has updated
  gathered,   // they pass through the window
};

enum class UnitOrder : uint8_t {
  plain,     // each micro-batch forward through all units and back, then the next
  vertical,  // all micro-batches through a unit before the next unit (GreedySnake's word)
};

// What the device adds up of a unit's gradients over micro-batches, in fp32, before they land.
enum class GradientSums : uint8_t {
  none,    // nothing: each micro-batch's land
  shards,  // sums over ranks, this rank's 1/world of them
  whole,   // local gradients
};

struct ProgramInput {
  const ModelLayout& layout;
  std::vector<ParameterAccess> access;  // by unit
  std::vector<bool> keeps_saved;        // by unit: its saved bytes live until backward
  std::vector<uint64_t> output_bytes;   // by unit: of one micro-batch
  std::vector<Tier> checkpoint_tier;    // by unit: where its output waits for backward
  int micro_batches = 1;
  bool training = true;  // false: forward only
  UnitOrder order = UnitOrder::plain;
  bool overlap = true;  // gather ahead, land behind the next backward, move checkpoints early
  // With overlap at least one unit is gathered ahead, and at most so many, as far as all of them
  // together, and those being used as well, have no more elements than this.
  int gather_ahead = 1;
  int64_t prefetch_numel = std::numeric_limits<int64_t>::max();
  int64_t max_live_numel = std::numeric_limits<int64_t>::max();
  // Whether a unit's gradient slot takes others' gradients once it has landed.
  bool recycle_gradients = true;
  GradientSums sums = GradientSums::none;
};

struct Program {
  std::vector<Action> actions;
  std::vector<int64_t> window_numel;     // elements of each buffer for a gathered unit
  std::vector<int64_t> grad_slot_numel;  // elements of each buffer for local gradients
  std::vector<int> grad_slot;            // by micro-batch, then unit; -1 for none
  std::vector<int64_t> sum_slot_numel;   // elements of each buffer for a gradient's fp32 sum
  std::vector<int> sum_slot;             // by unit; -1 for none
  std::vector<uint64_t> place_bytes;     // of each place for a unit's output
  int output_grads = 0;                  // places for gradients of outputs, each for the widest

  int grad_slot_of(int unit, int micro_batch) const {
    return grad_slot[static_cast<size_t>(micro_batch) * sum_slot.size() +
                     static_cast<size_t>(unit)];
  }
};

// A gathered unit stays in its slot while no other needs the room (the one used farthest in the
// future goes). The last unit is never recomputed: its backward follows its forward at once.
Program make_program(const ProgramInput& input);

}  // namespace strata::engine
