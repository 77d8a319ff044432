// In place of state_ops.cu where the CUDA toolkit is absent.
#include "kernels/device/cuda_device.h"
#include "kernels/ops/state_ops.h"
#include "strata/error.h"

namespace strata::ops {

std::unique_ptr<StateOps> make_cuda_state_ops() { throw DeviceError(cuda_unavailable_reason()); }

}  // namespace strata::ops
