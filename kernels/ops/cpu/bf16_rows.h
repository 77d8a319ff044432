// bf16 to fp32 and back for matrix products, on the calling thread.
#pragma once

#include <cstdint>

namespace strata::ops::cpu {

void widen_bf16(const uint16_t* from, int64_t numel, float* to);
// Half to even, as all activations round.
void round_to_bf16(const float* from, int64_t numel, uint16_t* to);

}  // namespace strata::ops::cpu
