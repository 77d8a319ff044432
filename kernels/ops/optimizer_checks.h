// What updates and landings refuse, on every device alike.
#pragma once

#include "kernels/ops/optimizer_ops.h"

namespace strata::ops {

// Throw Error.
void check_update(const OptimizerScalars& scalars, const EncodedSpans& spans);
void check_landing(const LandGradientSpans& spans);

// Whether all of the state is fp32: elements are then updated in any number, not in whole blocks.
bool is_plain(const EncodedSpans& spans);

}  // namespace strata::ops
