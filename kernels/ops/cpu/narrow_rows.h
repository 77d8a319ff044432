// 16-bit elements to fp32 and back for matrix products, on the calling thread.
#pragma once

#include <cstdint>

#include "strata/dtype.h"

namespace strata::ops::cpu {

// `dtype` is that of the side which is not fp32.
void widen_row(DType dtype, const void* from, int64_t numel, float* to);
// Half to even, as all activations round.
void round_row(DType dtype, const float* from, int64_t numel, void* to);

}  // namespace strata::ops::cpu
