// The device whose layers a test binary computes on: the host, or CUDA where the environment
// variable STRATA_TEST_DEVICE is "cuda". Where CUDA cannot be used, the tests are then skipped and
// say why.
#pragma once

#include <cstddef>
#include <memory>

#include "kernels/device/device.h"
#include "kernels/ops/layer_ops.h"

namespace strata::ops {

DeviceKind kind_under_test();

// With that many threads, on the host.
std::unique_ptr<Queue> make_queue_under_test(int threads);
std::unique_ptr<LayerOps> make_ops_under_test(Queue& queue, int threads);

// Memory that the test and the device both reach: on the host an allocation of exactly its size, so
// that sanitizers see its ends, and pinned memory with CUDA. Aligned to 64 bytes at least.
class SharedMemory {
 public:
  explicit SharedMemory(size_t bytes);

  std::byte* data() const { return data_; }

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };

  std::unique_ptr<std::byte, Free> exact_;
  MemoryBlock pinned_;
  std::byte* data_ = nullptr;
};

}  // namespace strata::ops
