// What holds of every device's queues: order, waits, copies and the traffic they report.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <latch>
#include <numeric>
#include <thread>

#include "tests/kernels/device/device_fixture.h"

namespace strata {
namespace {

using QueueConformanceTest = DeviceTest;
INSTANTIATE_TEST_SUITE_P(Devices, QueueConformanceTest, every_kind(), kind_name);

constexpr TrafficTag kTag = {StateKind::grad, 7, "test"};

// An event source that is never reached when asked, and is when waited for.
class SlowQueue final : public Queue {
 public:
  void wait(const Event&, const TrafficTag&) override {}
  void run(HostTask) override {}
  void copy(void*, const void*, size_t, CopyDirection, const TrafficTag&) override {}
  void fill_zero(void*, size_t) override {}
  QueueStanding standing() const override { return {}; }
  void abandon(std::exception_ptr) noexcept override {}
  bool failed() const override { return false; }
  void finish() noexcept override {}
  const char* name() const override { return "slow"; }

 protected:
  uint64_t record_point() override { return 1; }
  bool point_reached(uint64_t) const override { return false; }
  void wait_for_point(uint64_t) const override {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
};

TEST_P(QueueConformanceTest, TasksRunInTheOrderTheyWereEnqueued) {
  const auto queue = make_queue();
  std::vector<int> seen;
  for (int i = 0; i < 3000; ++i) queue->run([&seen, i] { seen.push_back(i); });
  queue->synchronize();
  std::vector<int> expected(3000);
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_EQ(seen, expected);
}

TEST_P(QueueConformanceTest, TasksCopiesAndFillsKeepTheirOrder) {
  const auto queue = make_queue();
  constexpr size_t kBytes = 4096;
  const MemoryBlock device = device_->allocate(kBytes);
  const MemoryBlock source = device_->allocate_pinned(kBytes);
  const MemoryBlock target = device_->allocate_pinned(kBytes);
  std::vector<int> seen;
  for (int i = 1; i <= 100; ++i) {
    queue->run([&source, i] { std::memset(source.data(), i, kBytes); });
    queue->copy(device.data(), source.data(), kBytes, CopyDirection::host_to_device, kTag);
    if (i % 3 == 0) queue->fill_zero(device.data(), kBytes);
    queue->copy(target.data(), device.data(), kBytes, CopyDirection::device_to_host, kTag);
    queue->run([&] { seen.push_back(static_cast<int>(target.data()[kBytes - 1])); });
  }
  queue->synchronize();
  ASSERT_EQ(seen.size(), 100u);
  for (int i = 1; i <= 100; ++i) EXPECT_EQ(seen[i - 1], i % 3 == 0 ? 0 : i);
}

TEST_P(QueueConformanceTest, ADefaultEventIsReached) {
  const auto queue = make_queue();
  const Event event;
  EXPECT_TRUE(event.reached());
  event.wait();
  queue->wait(event, kTag);
  queue->synchronize();
}

TEST_P(QueueConformanceTest, AnEventIsReachedWhenTheWorkBeforeItIsDone) {
  const auto queue = make_queue();
  std::latch gate(1);
  const Event before = queue->record();
  queue->run([&gate] { gate.wait(); });
  const Event after = queue->record();
  before.wait();
  EXPECT_TRUE(before.reached());
  EXPECT_FALSE(after.reached());
  gate.count_down();
  after.wait();
  EXPECT_TRUE(after.reached());
  EXPECT_TRUE(before.reached());
}

TEST_P(QueueConformanceTest, AnEventHoldsForItsPointWhateverFollows) {
  const auto queue = make_queue();
  std::vector<Event> events;
  int done = 0;
  for (uint64_t i = 0; i < 2 * kQueueDepth; ++i) {
    queue->run([&done] { ++done; });
    events.push_back(queue->record());
  }
  queue->synchronize();
  EXPECT_EQ(done, static_cast<int>(2 * kQueueDepth));
  EXPECT_TRUE(std::all_of(events.begin(), events.end(), [](Event e) { return e.reached(); }));
}

TEST_P(QueueConformanceTest, ManyThreadsMayWaitForOneEvent) {
  const auto queue = make_queue();
  std::latch gate(1);
  int value = 0;
  queue->run([&] {
    gate.wait();
    value = 42;
  });
  const Event event = queue->record();
  std::atomic<int> right = 0;
  std::vector<std::jthread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      event.wait();
      right += value == 42;
    });
  }
  gate.count_down();
  threads.clear();
  EXPECT_EQ(right, 4);
}

// A producer and a consumer pass one buffer back and forth: both a missing "written" and a missing
// "read" edge would show as a wrong value.
TEST_P(QueueConformanceTest, WaitsOrderQueuesUnderRandomDelays) {
  constexpr size_t kBytes = 4096;
  constexpr int kRounds = 6;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    const auto device = make_device(kTestCapBytes, seed);
    const MemoryBlock shared = device->allocate(kBytes);
    const MemoryBlock source = device->allocate_pinned(kBytes);
    const MemoryBlock target = device->allocate_pinned(kBytes);
    const auto producer = device->create_queue({.name = "producer"});
    const auto consumer = device->create_queue({.name = "consumer"});
    std::vector<int> seen;
    Event consumed;
    for (int round = 1; round <= kRounds; ++round) {
      producer->run([&source, round] { std::memset(source.data(), round, kBytes); });
      producer->wait(consumed, kTag);
      producer->copy(shared.data(), source.data(), kBytes, CopyDirection::host_to_device, kTag);
      consumer->wait(producer->record(), kTag);
      consumer->copy(target.data(), shared.data(), kBytes, CopyDirection::device_to_host, kTag);
      consumed = consumer->record();
      consumer->run([&] { seen.push_back(static_cast<int>(target.data()[0])); });
    }
    consumer->synchronize();
    EXPECT_EQ(seen, (std::vector<int>{1, 2, 3, 4, 5, 6}));
  }
}

// Device work that waits for host work that waits for device work: what the optimizer does.
TEST_P(QueueConformanceTest, HostQueuesAndDeviceQueuesWaitForEachOther) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    const auto device = make_device(kTestCapBytes, seed);
    const MemoryBlock state = device->allocate(sizeof(int));
    const MemoryBlock buffer = device->allocate_pinned(sizeof(int));
    int* const number = reinterpret_cast<int*>(buffer.data());
    const auto down = device->create_queue({.name = "down"});
    const auto up = device->create_queue({.name = "up"});
    const auto update = make_host_queue({.name = "update"}, {.delay_seed = seed}, sink_);
    Event uploaded;
    for (int round = 0; round < 10; ++round) {
      down->wait(uploaded, kTag);
      down->copy(number, state.data(), sizeof(int), CopyDirection::device_to_host, kTag);
      update->wait(down->record(), kTag);
      update->run([number] { *number = *number * 3 + 1; });
      up->wait(update->record(), kTag);
      up->copy(state.data(), number, sizeof(int), CopyDirection::host_to_device, kTag);
      uploaded = up->record();
    }
    uploaded.wait();
    EXPECT_EQ(*number, 29524);  // (3^10 - 1) / 2
    // Before the queue whose events the others wait for goes.
    down->synchronize();
    up->synchronize();
  }
}

TEST_P(QueueConformanceTest, CopiesMoveEveryByteAndReportThem) {
  const auto queue = make_queue("copies");
  for (const size_t bytes : {size_t{1}, size_t{4095}, size_t{4096}, (size_t{1} << 20) + 3}) {
    SCOPED_TRACE(testing::Message() << bytes << " bytes");
    const MemoryBlock source = device_->allocate_pinned(bytes);
    const MemoryBlock target = device_->allocate_pinned(bytes);
    const MemoryBlock first = device_->allocate(bytes);
    const MemoryBlock second = device_->allocate(bytes);
    for (size_t i = 0; i < bytes; ++i) source.data()[i] = static_cast<std::byte>(i * 31 + bytes);
    const size_t uploads = sink_.of(Activity::h2d).size();
    const size_t downloads = sink_.of(Activity::d2h).size();

    queue->copy(first.data(), source.data(), bytes, CopyDirection::host_to_device, kTag);
    queue->copy(second.data(), first.data(), bytes, CopyDirection::device_to_device, kTag);
    queue->copy(target.data(), second.data(), bytes, CopyDirection::device_to_host, kTag);
    queue->synchronize();

    EXPECT_EQ(std::memcmp(source.data(), target.data(), bytes), 0);
    const auto h2d = sink_.of(Activity::h2d);
    const auto d2h = sink_.of(Activity::d2h);
    ASSERT_EQ(h2d.size(), uploads + 1);
    ASSERT_EQ(d2h.size(), downloads + 1);
    for (const TrafficRecord& record : {h2d.back(), d2h.back()}) {
      EXPECT_EQ(record.bytes, bytes);
      EXPECT_EQ(record.tag.kind, kTag.kind);
      EXPECT_EQ(record.tag.index, kTag.index);
      EXPECT_STREQ(record.tag.label, kTag.label);
      EXPECT_STREQ(record.lane, "copies");
      EXPECT_LE(record.begin_ns, record.end_ns);
    }
    EXPECT_LE(h2d.back().end_ns, d2h.back().begin_ns);
  }
}

TEST_P(QueueConformanceTest, CopiesThatCrossNoLinkAreNotTraffic) {
  const auto queue = make_queue();
  const MemoryBlock device = device_->allocate(8192);
  const MemoryBlock host = device_->allocate_pinned(8192);
  std::memset(host.data(), 5, 4096);
  queue->copy(device.data() + 4096, device.data(), 4096, CopyDirection::device_to_device, kTag);
  queue->copy(host.data() + 4096, host.data(), 4096, CopyDirection::host_to_host, kTag);
  queue->copy(host.data(), device.data(), 0, CopyDirection::device_to_host, kTag);
  queue->fill_zero(device.data(), 8192);
  queue->synchronize();
  EXPECT_EQ(static_cast<int>(host.data()[8191]), 5);
  EXPECT_EQ(sink_.count(), 0u);
}

TEST_P(QueueConformanceTest, FillZeroClearsExactlyItsBytes) {
  const auto queue = make_queue();
  constexpr size_t kBytes = 20000;
  const MemoryBlock device = device_->allocate(kBytes);
  const MemoryBlock host = device_->allocate_pinned(kBytes);
  std::memset(host.data(), 0xab, kBytes);
  queue->copy(device.data(), host.data(), kBytes, CopyDirection::host_to_device, kTag);
  queue->fill_zero(device.data() + 1, kBytes - 2);
  queue->copy(host.data(), device.data(), kBytes, CopyDirection::device_to_host, kTag);
  queue->synchronize();
  EXPECT_EQ(host.data()[0], std::byte{0xab});
  EXPECT_EQ(host.data()[kBytes - 1], std::byte{0xab});
  EXPECT_TRUE(std::all_of(host.data() + 1, host.data() + kBytes - 1,
                          [](std::byte b) { return b == std::byte{0}; }));
}

TEST_P(QueueConformanceTest, StandingStillForAnEventIsReported) {
  SlowQueue slow;
  const auto queue = make_queue("waiting");
  queue->wait(slow.record(), kTag);
  queue->synchronize();
  const auto waits = sink_.of(Activity::wait);
  ASSERT_EQ(waits.size(), 1u);
  EXPECT_STREQ(waits[0].lane, "waiting");
  EXPECT_STREQ(waits[0].tag.label, kTag.label);
  EXPECT_EQ(waits[0].bytes, 0u);
  EXPECT_LT(waits[0].begin_ns, waits[0].end_ns);
}

TEST_P(QueueConformanceTest, WaitingForWhatIsReachedIsNotReported) {
  const auto first = make_queue();
  const auto second = make_queue();
  first->run([] {});
  first->synchronize();
  second->wait(first->record(), kTag);
  second->wait(second->record(), kTag);
  second->synchronize();
  EXPECT_EQ(sink_.of(Activity::wait).size(), 0u);
}

TEST_P(QueueConformanceTest, EnqueueingWaitsWhenTheQueueIsFull) {
  const auto queue = make_queue();
  std::latch gate(1);
  std::atomic<uint64_t> enqueued = 0;
  bool bounded = true;
  queue->run([&gate] { gate.wait(); });
  std::jthread enqueuer([&] {
    for (uint64_t i = 0; i < 3 * kQueueDepth; ++i) {
      // i + 1 operations are done when this one runs, and the gate was one of those enqueued.
      queue->run([&, i] { bounded &= enqueued + 1 <= i + 1 + kQueueDepth; });
      ++enqueued;
    }
  });
  // Until the enqueuer stands still, against the full queue.
  uint64_t last = 0;
  do {
    last = enqueued;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  } while (last == 0 || last != enqueued);
  EXPECT_LE(last, kQueueDepth);
  gate.count_down();
  enqueuer.join();
  queue->synchronize();
  EXPECT_TRUE(bounded);
  EXPECT_EQ(enqueued, 3 * kQueueDepth);
}

TEST_P(QueueConformanceTest, DestroyingAQueueFinishesItsWork) {
  int done = 0;
  {
    const auto queue = make_queue();
    for (int i = 0; i < 500; ++i) queue->run([&done] { ++done; });
  }
  EXPECT_EQ(done, 500);
}

TEST_P(QueueConformanceTest, DeviceAndQueueSayWhatTheyAre) {
  EXPECT_EQ(device_->kind(), GetParam());
  EXPECT_FALSE(device_->description().empty());
  const auto queue = make_queue("named");
  EXPECT_STREQ(queue->name(), "named");
  EXPECT_EQ(queue->native_handle() != nullptr, GetParam() == DeviceKind::cuda);
}

}  // namespace
}  // namespace strata
