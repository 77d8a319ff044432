// Arithmetic on training state as work on a queue, an interface every kind of device implements
// with the same bits.
#pragma once

#include <memory>

#include "kernels/device/device.h"
#include "kernels/ops/optimizer_ops.h"

namespace strata::ops {

// Calls enqueue on `queue` and return; spans lie in memory of the queue's device and stay until
// the work is done. Thread-safe as far as the queue is.
class StateOps {
 public:
  virtual ~StateOps() = default;

  virtual void optimizer_update(Queue& queue, const OptimizerScalars& scalars,
                                const EncodedSpans& spans) = 0;
  virtual void land_gradient(Queue& queue, const LandGradientSpans& spans) = 0;
};

// For host queues, and queues of the host device.
std::unique_ptr<StateOps> make_host_state_ops();

// For queues of a CUDA device, whose memory the spans lie in. Throws DeviceError where the build
// has no CUDA.
std::unique_ptr<StateOps> make_cuda_state_ops();

}  // namespace strata::ops
