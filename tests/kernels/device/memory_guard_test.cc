// Guarded device memory is the queues' alone.
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "kernels/device/host_device.h"
#include "strata/traffic.h"

namespace strata {
namespace {

constexpr size_t kBytes = 10'000;  // not whole pages
constexpr TrafficTag kTag = {StateKind::other, -1, "test"};

class MemoryGuardTest : public testing::Test {
 protected:
  NullTrafficSink traffic_;
  const std::unique_ptr<Device> device_ = make_host_device({.guard_memory = true}, traffic_);
  const std::unique_ptr<Queue> queue_ = device_->create_queue({.name = "queue"});
  const MemoryBlock pinned_ = device_->allocate_pinned(kBytes);
  MemoryBlock block_ = device_->allocate(kBytes);
};

TEST_F(MemoryGuardTest, QueuesMayUseIt) {
  std::memset(pinned_.data(), 7, kBytes);
  queue_->copy(block_.data(), pinned_.data(), kBytes, CopyDirection::host_to_device, kTag);
  queue_->run([this] { block_.data()[1] = std::byte{9}; });
  queue_->copy(pinned_.data(), block_.data(), kBytes, CopyDirection::device_to_host, kTag);
  queue_->synchronize();
  EXPECT_EQ(pinned_.data()[0], std::byte{7});
  EXPECT_EQ(pinned_.data()[1], std::byte{9});
}

using MemoryGuardDeathTest = MemoryGuardTest;

TEST_F(MemoryGuardDeathTest, OthersMayNot) {
  queue_->fill_zero(block_.data(), kBytes);
  queue_->synchronize();
  EXPECT_DEATH(block_.data()[0] = std::byte{1}, "");
  EXPECT_DEATH(ASSERT_EQ(std::memcmp(block_.data(), pinned_.data(), kBytes), 0), "");
}

// A queue that waits for another one does not hold the memory open.
TEST_F(MemoryGuardDeathTest, NotWhileAQueueWaits) {
  const auto host = make_host_queue({.name = "host"}, {}, traffic_);
  std::promise<void> started;
  host->run([&] {
    started.get_future().wait();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));  // by then the queue waits
    EXPECT_DEATH(block_.data()[0] = std::byte{1}, "");
  });
  queue_->run([&] { started.set_value(); });
  queue_->wait(host->record(), kTag);
  queue_->run([this] { block_.data()[0] = std::byte{2}; });
  queue_->synchronize();
}

TEST_F(MemoryGuardTest, FreedMemoryIsForgotten) {
  block_.reset();
  const MemoryBlock other = device_->allocate(3 * kBytes);
  queue_->fill_zero(other.data(), 3 * kBytes);
  queue_->synchronize();
}

}  // namespace
}  // namespace strata
