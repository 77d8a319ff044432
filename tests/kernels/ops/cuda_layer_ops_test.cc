// What CUDA's LayerOps refuses, with and without a GPU.
#include <gtest/gtest.h>

#include "kernels/device/host_device.h"
#include "strata/error.h"
#include "tests/kernels/ops/layer_testing.h"

namespace strata::ops {
namespace {

TEST(CudaLayerOps, RefusesTheQueueOfAnotherDevice) {
  NullTrafficSink sink;
  const std::unique_ptr<Queue> queue = make_host_queue({.name = "host"}, {}, sink);
  EXPECT_THROW(make_cuda_layer_ops(*queue), DeviceError);
}

TEST(CudaLayerOps, RefusesHeadsWiderThanItsKernels) {
  if (kind_under_test() != DeviceKind::cuda) GTEST_SKIP() << "about CUDA";
  Bench bench;
  EXPECT_NO_THROW(bench->attention_workspace_bytes(DType::bf16, {1, 4, 3 * 256}, 1));
  EXPECT_THROW(bench->attention_workspace_bytes(DType::bf16, {1, 4, 3 * 257}, 1), Error);
}

}  // namespace
}  // namespace strata::ops
