#include "tests/kernels/ops/device_under_test.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <new>
#include <string_view>

#include "kernels/device/cuda_device.h"
#include "kernels/device/host_device.h"

namespace strata::ops {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr size_t kDeviceCapBytes = size_t{64} << 20;

NullTrafficSink& sink() {
  static NullTrafficSink sink;
  return sink;
}

// Only where CUDA is under test.
Device& cuda_device() {
  static const std::unique_ptr<Device> device =
      make_cuda_device({.ordinal = 0, .cap_bytes = kDeviceCapBytes}, sink());
  return *device;
}

class SkipWithoutDevice : public ::testing::Environment {
 public:
  void SetUp() override {
    if (kind_under_test() == DeviceKind::host || cuda_unavailable_reason().empty()) return;
    GTEST_SKIP() << "No device under test: " << cuda_unavailable_reason();
  }
};

[[maybe_unused]] const auto* const kSkipWithoutDevice =
    ::testing::AddGlobalTestEnvironment(new SkipWithoutDevice);  // gtest owns it

}  // namespace

DeviceKind kind_under_test() {
  const char* name = std::getenv("STRATA_TEST_DEVICE");
  return name != nullptr && std::string_view(name) == "cuda" ? DeviceKind::cuda : DeviceKind::host;
}

std::unique_ptr<Queue> make_queue_under_test(int threads) {
  const QueueOptions options{.name = "layers", .threads = threads};
  if (kind_under_test() == DeviceKind::cuda) return cuda_device().create_queue(options);
  return make_host_queue(options, {}, sink());
}

std::unique_ptr<LayerOps> make_ops_under_test(Queue& queue, int threads) {
  if (kind_under_test() == DeviceKind::cuda) return make_cuda_layer_ops(queue);
  return make_host_layer_ops(queue, threads);
}

SharedMemory::SharedMemory(size_t bytes) {
  if (kind_under_test() == DeviceKind::cuda) {
    pinned_ = cuda_device().allocate_pinned(bytes);
    data_ = pinned_.data();
  } else {
    exact_.reset(static_cast<std::byte*>(::operator new(bytes, kAlignment)));
    data_ = exact_.get();
  }
}

void SharedMemory::Free::operator()(std::byte* data) const { ::operator delete(data, kAlignment); }

}  // namespace strata::ops
