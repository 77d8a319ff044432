// Stands in for the mathematics on CUDA where the toolkit was absent at build time.
#include "kernels/device/cuda_device.h"
#include "kernels/ops/layer_ops.h"
#include "kernels/ops/state_ops.h"
#include "strata/error.h"

namespace strata::ops {

std::unique_ptr<LayerOps> make_cuda_layer_ops(Queue&) {
  throw DeviceError("CUDA cannot be used: " + cuda_unavailable_reason());
}

std::unique_ptr<StateOps> make_cuda_state_ops() {
  throw DeviceError("CUDA cannot be used: " + cuda_unavailable_reason());
}

}  // namespace strata::ops
