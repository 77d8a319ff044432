// Orders in which the optimizer pipeline takes sub-groups. Pure functions of layout and program.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/runtime/program.h"
#include "engine/zero/unit_layout.h"
#include "offload/placement.h"

namespace strata::engine {

// A run of sub-groups by index.
struct SubGroupRange {
  int32_t begin = 0;
  int32_t end = 0;
};

// The sub-groups that have some of these grains.
SubGroupRange sub_groups_of(std::span<const offload::SubGroup> groups, GrainRange grains);

// What a unit's trainable shard has parts of.
struct OrderInput {
  const ModelLayout& layout;
  std::span<const offload::SubGroup> groups;
  const Program& program;
};

// As the forward pass first needs their parameters: a unit's when it is gathered, or used where it
// lies. The tail of a step follows it, and so do the reads for the next one.
std::vector<int32_t> order_of_use(const OrderInput& input);

// As the last micro-batch's backward completes their gradients: a unit's at its reduction, a
// sub-group's with the last of its units.
std::vector<int32_t> order_of_completion(const OrderInput& input);

}  // namespace strata::engine
