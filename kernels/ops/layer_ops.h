// What implements the mathematics of layers (strata/layer_ops.h) on each kind of device.
#pragma once

#include <memory>

#include "kernels/device/device.h"
#include "strata/layer_ops.h"

namespace strata::ops {

// Host implementation: oneDNN for matrix products, Highway for the rest. `queue` is a host queue
// (its team computes) and must outlive the ops. Workspace sizes hold for the queue's team size
// `threads`.
std::unique_ptr<LayerOps> make_host_layer_ops(Queue& queue, int threads);

// CUDA implementation: cuBLASLt, which is loaded here, for linear layers, own kernels for the rest.
// `queue` is a queue of a CUDA device and must outlive the ops. Throws DeviceError where cuBLASLt
// is not on this machine, or the build is without CUDA.
std::unique_ptr<LayerOps> make_cuda_layer_ops(Queue& queue);

}  // namespace strata::ops
