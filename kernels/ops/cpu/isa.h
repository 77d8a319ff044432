// Which instruction set the kernels run on whose bits do not depend on it: the optimizer's and
// dropout's.
//
// Highway's own choice is one for the process. Ours is apart from it, so that forcing an
// instruction set on these leaves the layers' other kernels, whose bits may depend on it, where
// they were.
//
// Include this before any Highway header.
#pragma once

// Vectors whose length is known only at run time cannot be members or array elements; such machines
// run the fixed-length targets.
#define STRATA_SIZELESS_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
// Under sanitizers a target takes minutes to compile: the baseline and AVX2 stand for all.
#ifdef STRATA_FEWER_ISAS
#define HWY_DISABLED_TARGETS (STRATA_SIZELESS_TARGETS | HWY_SSSE3 | HWY_SSE4 | HWY_AVX3)
#else
#define HWY_DISABLED_TARGETS STRATA_SIZELESS_TARGETS
#endif

#include <cstddef>

#include "hwy/targets.h"

namespace strata::ops {

// The choice in force. The first call reads STRATA_FORCE_ISA; throws ConfigError as active_isa()
// does. Thread-safe.
const hwy::ChosenTarget& chosen_target();

// The function of the instruction set in force, from a table that HWY_EXPORT made.
template <typename Function, size_t kTargets>
Function in_force(Function const (&table)[kTargets]) {
  const hwy::ChosenTarget& chosen = chosen_target();
  if constexpr (kTargets == 1) {
    return table[0];
  } else {
    return table[chosen.GetIndex()];
  }
}

}  // namespace strata::ops
