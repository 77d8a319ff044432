// Which elements dropout drops: a pure function of counters, so no mask is stored, and backward, a
// recomputation, and any device, thread count or vector length find the same one.
//
// An element has 16 random bits, and is dropped when they are below `threshold`, its probability in
// units of 2^-16. What is kept is multiplied by `scale` = 1 / (1 - threshold / 2^16), so that the
// mean is kept exactly for the probability in force, which is within 2^-17 of the one asked for.
//
// The bits come from Philox4x32-10 (kernels/ops/random.h). A site's key and stream are the first
// and last 64 of the 128 bits of
//
//     Philox{seed}(step, micro_batch << 32 | layer << 8 | site),
//
// lower words first. Its elements lie in rows and columns, where 8 rows and 16 columns share 16
// calls: with call = Philox{key}(row / 8 << 32 | column, stream), an element's bits are the
// (row % 8)th 16 of the call's 128, from the lowest.
//
//   * Attention probabilities: a row is a query, a column a key. Batch row b and head h have a
//     stream of their own, the site's + (b << 32 | h), modulo 2^64.
//   * Elements in a line (dropout of activations): row i / 16 % 8 of block i / 128, whose calls are
//     Philox{key}(i / 128 * 16 + i % 16, stream).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/ops/random.h"
#include "strata/dropout.h"

namespace strata::ops {

// What kernels compute with.
struct DropoutStream {
  uint64_t key = 0;
  uint64_t stream = 0;
  uint32_t threshold = 0;  // in units of 2^-16, at most 2^16 - 1
  float scale = 1;

  constexpr bool drops() const { return threshold > 0; }
};

inline DropoutStream stream_of(const DropoutSite& site) {
  constexpr double kOne = 0x1p16;
  const RandomKey& key = site.key;
  const uint64_t place =
      uint64_t{key.micro_batch} << 32 | uint64_t{key.layer} << 8 | uint64_t{site.site};
  const auto words = Philox{key.seed}(key.step, place);
  const double threshold = std::min(std::round(site.probability * kOne), kOne - 1);
  return {.key = words[0] | uint64_t{words[1]} << 32,
          .stream = words[2] | uint64_t{words[3]} << 32,
          .threshold = static_cast<uint32_t>(threshold),
          .scale = static_cast<float>(kOne / (kOne - threshold))};
}

}  // namespace strata::ops
