// The order of units: one step as a straight-line program.
//
// Made once from the model's layout, before anything is allocated. The plan counts its bytes and
// sizes its buffers from it; the runtime executes it. So the two cannot disagree, and another
// schedule is another generator, not another runtime.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/zero/unit_layout.h"

namespace strata::engine {

struct Action {
  enum class Op : uint8_t {
    gather,    // bring `unit`'s parameters into window slot `slot`
    forward,   // run `unit` on `micro_batch`
    backward,  // the same, after recomputing its forward if `recompute`
    reduce,    // `unit`'s local gradients in gradient slot `slot` are complete: land them
  };
  Op op = Op::gather;
  int unit = 0;
  int micro_batch = 0;
  int slot = -1;
  bool recompute = false;
};

// Which units' parameters need gathering; the others are used where they lie.
struct ProgramInput {
  const ModelLayout& layout;
  std::vector<bool> gathered;     // by unit
  std::vector<bool> keeps_saved;  // by unit: its saved bytes live until backward
  int micro_batches = 1;
  bool training = true;  // false: forward only
  bool overlap = true;   // gather one unit ahead, land behind the next backward
};

struct Program {
  std::vector<Action> actions;
  std::vector<int64_t> window_numel;     // elements of each buffer for a gathered unit
  std::vector<int64_t> grad_slot_numel;  // elements of each buffer for local gradients
  std::vector<int> grad_slot;            // by unit: the gradient slot it uses; -1 for none
};

// Plain order: for each micro-batch forward through all units, then backward in reverse. A gathered
// unit stays in its slot while no other needs the room (the one used farthest in the future goes).
// The last unit is never recomputed: its backward follows its forward at once.
Program plain_program(const ProgramInput& input);

}  // namespace strata::engine
