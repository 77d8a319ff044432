// What holds of every device's queues when work throws.
#include <cstring>
#include <latch>
#include <memory>
#include <stdexcept>
#include <thread>

#include "strata/error.h"
#include "tests/kernels/device/device_fixture.h"

namespace strata {
namespace {

using FailureConformanceTest = DeviceTest;
INSTANTIATE_TEST_SUITE_P(Devices, FailureConformanceTest, every_kind(), kind_name);

constexpr TrafficTag kTag = {};

// A type of its own: what arrives must be what was thrown, not something made from its text.
struct Broken : std::runtime_error {
  explicit Broken(int which) : std::runtime_error("broken"), number(which) {}
  int number;
};

int number_thrown_by(const Event& event) {
  try {
    event.wait();
  } catch (const Broken& broken) {
    return broken.number;
  }
  return 0;
}

TEST_P(FailureConformanceTest, AFailureShowsAtPointsBehindItAndNotBefore) {
  const auto queue = make_queue();
  queue->run([] {});
  const Event before = queue->record();
  queue->run([] { throw Broken(1); });
  const Event after = queue->record();
  queue->run([] {});
  const Event later = queue->record();
  EXPECT_EQ(number_thrown_by(later), 1);
  EXPECT_EQ(number_thrown_by(after), 1);
  before.wait();
  EXPECT_TRUE(before.reached());
  EXPECT_THROW(after.reached(), Broken);
  EXPECT_THROW(later.reached(), Broken);
}

TEST_P(FailureConformanceTest, TheFirstFailureStays) {
  const auto queue = make_queue();
  queue->run([] { throw Broken(1); });
  queue->run([] { throw Broken(2); });
  EXPECT_EQ(number_thrown_by(queue->record()), 1);
  queue->run([] { throw Broken(3); });
  EXPECT_EQ(number_thrown_by(queue->record()), 1);
  EXPECT_EQ(number_thrown_by(queue->record()), 1);
}

TEST_P(FailureConformanceTest, WorkBehindAFailureIsSkipped) {
  const auto queue = make_queue();
  const MemoryBlock device = device_->allocate(4096);
  const MemoryBlock host = device_->allocate_pinned(4096);
  std::memset(host.data(), 9, 4096);
  bool ran = false;
  EXPECT_FALSE(queue->failed());
  queue->run([] { throw Broken(1); });
  queue->run([&ran] { ran = true; });
  EXPECT_THROW(queue->synchronize(), Broken);
  EXPECT_TRUE(queue->failed());
  queue->copy(host.data(), device.data(), 4096, CopyDirection::device_to_host, kTag);
  queue->fill_zero(device.data(), 4096);
  EXPECT_THROW(queue->synchronize(), Broken);
  EXPECT_FALSE(ran);
  EXPECT_EQ(host.data()[0], std::byte{9});
  EXPECT_EQ(sink_.of(Activity::d2h).size(), 0u);
}

TEST_P(FailureConformanceTest, SkippedTasksLetGoOfWhatTheyHold) {
  const auto queue = make_queue();
  const auto held = std::make_shared<int>(0);
  queue->run([] { throw Broken(1); });
  queue->run([held] { ++*held; });
  EXPECT_THROW(queue->synchronize(), Broken);
  EXPECT_EQ(held.use_count(), 1);
  EXPECT_EQ(*held, 0);
}

TEST_P(FailureConformanceTest, AFailureTravelsAlongWaits) {
  const auto first = make_queue("first");
  const auto second = make_queue("second");
  const auto third = make_queue("third");
  std::latch gate(1);
  bool ran = false;
  first->run([&gate] {
    gate.wait();
    throw Broken(7);
  });
  const Event second_before = second->record();
  second->wait(first->record(), kTag);
  third->wait(second->record(), kTag);
  third->run([&ran] { ran = true; });
  const Event end = third->record();
  gate.count_down();
  EXPECT_EQ(number_thrown_by(end), 7);
  EXPECT_EQ(number_thrown_by(second->record()), 7);
  second_before.wait();
  EXPECT_FALSE(ran);
}

TEST_P(FailureConformanceTest, WaitingForAPointBeforeTheFailureIsHarmless) {
  const auto first = make_queue("first");
  const auto second = make_queue("second");
  bool ran = false;
  first->run([] {});
  const Event good = first->record();
  first->run([] { throw Broken(1); });
  EXPECT_THROW(first->synchronize(), Broken);
  second->wait(good, kTag);
  second->run([&ran] { ran = true; });
  second->synchronize();
  EXPECT_TRUE(ran);
}

TEST_P(FailureConformanceTest, AFailureTravelsBetweenHostAndDeviceQueues) {
  const auto host = make_host_queue({.name = "host"}, {}, sink_);
  const auto device = make_queue("device");
  const auto other_host = make_host_queue({.name = "other host"}, {}, sink_);
  std::latch gate(1);
  host->run([&gate] {
    gate.wait();
    throw Broken(3);
  });
  device->wait(host->record(), kTag);
  other_host->wait(device->record(), kTag);
  const Event end = other_host->record();
  gate.count_down();
  EXPECT_EQ(number_thrown_by(end), 3);
  EXPECT_EQ(number_thrown_by(device->record()), 3);
}

TEST_P(FailureConformanceTest, EveryWaiterGetsTheFailure) {
  const auto queue = make_queue();
  std::latch gate(1);
  queue->run([&gate] {
    gate.wait();
    throw Broken(5);
  });
  const Event event = queue->record();
  std::vector<int> numbers(4);
  std::vector<std::jthread> threads;
  for (int& number : numbers) {
    threads.emplace_back([&number, event] { number = number_thrown_by(event); });
  }
  gate.count_down();
  threads.clear();
  EXPECT_EQ(numbers, (std::vector<int>{5, 5, 5, 5}));
}

TEST_P(FailureConformanceTest, StratasErrorsKeepTheirFields) {
  const auto queue = make_queue();
  queue->run([] { throw IoError("disk gone", "/data/block", 4096, 5); });
  try {
    queue->synchronize();
    FAIL() << "nothing was thrown";
  } catch (const IoError& error) {
    EXPECT_EQ(error.path, "/data/block");
    EXPECT_EQ(error.offset, 4096u);
    EXPECT_EQ(error.error_number, 5);
  }
}

TEST_P(FailureConformanceTest, DestroyingAPoisonedQueueIsQuiet) {
  bool ran = false;
  {
    const auto queue = make_queue();
    queue->run([] { throw Broken(1); });
    queue->run([&ran] { ran = true; });
  }
  EXPECT_FALSE(ran);
}

}  // namespace
}  // namespace strata
