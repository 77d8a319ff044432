// Where a rank's training state lives, from the configuration's fractions and the layout's shards.
#pragma once

#include <cstdint>

#include "engine/zero/unit_layout.h"
#include "offload/training_state.h"
#include "strata/config.h"

namespace strata::engine {

// Optimizer state placed on nvme stays in host memory up to grain `pinned_until`. Throws
// ConfigError where state would be updated on a device that its parameters are not on.
offload::TrainingStateSpec place_state(const Config& config, const ModelLayout& layout,
                                       int64_t pinned_until);

// Where a whole unit's flat buffers, trainable before frozen, start in the buffer of whole units.
uint64_t whole_offset(const ModelLayout& layout, int unit, DType dtype);

}  // namespace strata::engine
