// Where a layer drops elements. No mask is stored: what is dropped is a pure function of the site,
// so that backward and a recomputation find the same elements.
#pragma once

#include <cstdint>

#include "strata/random_key.h"

namespace strata::ops {

// One place in a layer where elements are dropped, in one pass over one micro-batch.
struct DropoutSite {
  double probability = 0;  // in [0, 1); below 2^-17 nothing is dropped
  RandomKey key = {};      // key.layer < 2^24
  uint8_t site = 0;        // tells a layer's places apart

  constexpr bool drops() const { return probability >= 0x1p-17; }
};

}  // namespace strata::ops
