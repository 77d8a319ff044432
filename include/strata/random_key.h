// What a layer's random numbers are a function of, besides the place in the layer: never of which
// rank, thread or pass draws them, so that a recomputation sees what the first forward saw.
#pragma once

#include <cstdint>

namespace strata {

struct RandomKey {
  uint64_t seed = 0;         // the run's
  uint64_t step = 0;         // counted from 1
  uint32_t micro_batch = 0;  // among the step's of all ranks, in the order they are dealt
  uint32_t layer = 0;        // its place in the model

  friend constexpr bool operator==(const RandomKey&, const RandomKey&) = default;
};

}  // namespace strata
