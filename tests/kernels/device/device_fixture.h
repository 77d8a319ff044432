// One test suite over every kind of device; kinds that cannot be used here are skipped by name.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/device/cuda_device.h"
#include "kernels/device/host_device.h"

namespace strata {

// Keeps every record. Allocates, unlike a real sink.
class RecordingSink final : public TrafficSink {
 public:
  void record(const TrafficRecord& record) noexcept override {
    const std::lock_guard lock(mutex_);
    records_.push_back(record);
  }

  std::vector<TrafficRecord> of(Activity activity) const {
    const std::lock_guard lock(mutex_);
    std::vector<TrafficRecord> found;
    for (const TrafficRecord& record : records_) {
      if (record.activity == activity) found.push_back(record);
    }
    return found;
  }

  size_t count() const {
    const std::lock_guard lock(mutex_);
    return records_.size();
  }

 private:
  mutable std::mutex mutex_;
  std::vector<TrafficRecord> records_;
};

inline constexpr size_t kTestCapBytes = size_t{64} << 20;

class DeviceTest : public testing::TestWithParam<DeviceKind> {
 protected:
  void SetUp() override {
    if (GetParam() == DeviceKind::cuda && !cuda_unavailable_reason().empty()) {
      GTEST_SKIP() << cuda_unavailable_reason();
    }
    device_ = make_device();
  }

  // `delay_seed` reaches the kinds that have delays.
  std::unique_ptr<Device> make_device(size_t cap_bytes = kTestCapBytes, uint64_t delay_seed = 0) {
    if (GetParam() == DeviceKind::cuda) {
      return make_cuda_device({.ordinal = 0, .cap_bytes = cap_bytes}, sink_);
    }
    return make_host_device({.cap_bytes = cap_bytes, .delay_seed = delay_seed}, sink_);
  }

  std::unique_ptr<Queue> make_queue(const char* name = "queue") {
    return device_->create_queue({.name = name, .threads = 2});
  }

  RecordingSink sink_;
  std::unique_ptr<Device> device_;
};

inline std::string kind_name(const testing::TestParamInfo<DeviceKind>& kind) {
  return kind.param == DeviceKind::host ? "host" : "cuda";
}

inline auto every_kind() { return testing::Values(DeviceKind::host, DeviceKind::cuda); }

}  // namespace strata
