// What holds of host queues beyond the conformance suite: delays, teams, and the traffic lane.
#include "kernels/device/host_queue.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <latch>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "kernels/device/thread_team.h"
#include "tests/kernels/device/device_fixture.h"

namespace strata {
namespace {

constexpr TrafficTag kTag = {};

// Whether the consumer's task ran after the producer's, with or without the wait that demands it.
// The producer has a head start, so that without delays it is nearly always first.
bool in_order(uint64_t delay_seed, bool with_wait) {
  NullTrafficSink sink;
  const auto device = make_host_device({.delay_seed = delay_seed, .max_delay_us = 1000}, sink);
  const auto producer = device->create_queue({.name = "producer"});
  const auto consumer = device->create_queue({.name = "consumer"});
  std::latch started(1);
  std::atomic<bool> produced = false;
  bool seen = false;
  producer->run([&started] { started.count_down(); });
  producer->run([&produced] { produced = true; });
  const Event event = producer->record();
  started.wait();
  if (with_wait) consumer->wait(event, kTag);
  consumer->run([&] { seen = produced; });
  producer->synchronize();
  consumer->synchronize();
  return seen;
}

TEST(HostQueueDelays, AMissingWaitShowsUnderManySeedsAndAPresentOneUnderNone) {
  constexpr int kSeeds = 60;
  int broken_without = 0;
  int broken_with = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    broken_without += !in_order(seed, false);
    broken_with += !in_order(seed, true);
  }
  // About 4 in 10 are; without delays, hardly any.
  EXPECT_GT(broken_without, kSeeds / 8);
  EXPECT_EQ(broken_with, 0);
}

// Whoever waits for a task that does not end is let go; whoever needs it to have ended is not.
TEST(HostQueueStanding, AnAbandonedQueueLetsGoOfAllButFinish) {
  NullTrafficSink sink;
  const auto queue = make_host_queue({.name = "stuck"}, {}, sink);
  const auto behind = make_host_queue({.name = "behind"}, {}, sink);
  EXPECT_FALSE(queue->standing().under_way);
  std::atomic<bool> begun = false, open = false, ended = false, ran = false;
  queue->run([] {});
  const Event before = queue->record();
  before.wait();
  queue->begin_work({StateKind::activation, 4, "forward"});
  queue->run([&] {
    begun = true;
    begun.notify_all();
    open.wait(false);
    ended = true;
  });
  queue->begin_work({});
  queue->run([&] { ran = true; });
  const Event after = queue->record();
  behind->wait(after, {StateKind::other, -1, "behind"});

  begun.wait(false);
  const QueueStanding standing = queue->standing();
  EXPECT_TRUE(standing.under_way && !standing.waits);
  EXPECT_EQ(standing.ended, 1u);
  EXPECT_STREQ(standing.work.label, "forward");
  EXPECT_EQ(standing.work.index, 4);
  EXPECT_TRUE(behind->standing().waits);

  queue->abandon(std::make_exception_ptr(std::runtime_error("stuck")));
  EXPECT_THROW(after.wait(), std::runtime_error);
  EXPECT_THROW(after.reached(), std::runtime_error);
  EXPECT_THROW(behind->synchronize(), std::runtime_error);
  before.wait();
  // Room is not waited for either.
  EXPECT_THROW(for (uint64_t i = 0; i <= kQueueDepth; ++i) queue->run([] {}), std::runtime_error);
  EXPECT_FALSE(ended);
  open = true;
  open.notify_all();
  queue->finish();
  EXPECT_TRUE(ended);
  EXPECT_FALSE(ran);
  EXPECT_FALSE(queue->standing().under_way);
}

TEST(HostQueueStanding, TheThreadsTimeTellsComputingFromWaiting) {
  NullTrafficSink sink;
  const auto queue = make_host_queue({.name = "busy"}, {}, sink);
  const int64_t before_ns = queue->standing().cpu_ns;
  queue->run([queue = queue.get(), before_ns] {
    while (queue->standing().cpu_ns < before_ns + 20'000'000) {
    }
  });
  queue->synchronize();
  EXPECT_GE(queue->standing().cpu_ns, before_ns + 20'000'000);
  std::atomic<bool> open = false;
  queue->run([&open] { open.wait(false); });
  const auto computes = [&queue] {
    const int64_t cpu_ns = queue->standing().cpu_ns;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return queue->standing().cpu_ns > cpu_ns;
  };
  int looks = 0;
  while (computes() && looks < 1000) ++looks;  // it may still be on its way to sleep
  EXPECT_LT(looks, 1000);
  open = true;
  open.notify_all();
}

TEST(HostQueueTeams, TasksRunOnTheQueuesThreadWithItsTeam) {
  NullTrafficSink sink;
  for (const int threads : {1, 2, 3}) {
    const auto queue = make_host_queue({.name = "team", .threads = threads}, {}, sink);
    int size = 0;
    std::thread::id first, second;
    queue->run([&] {
      size = team_size();
      first = std::this_thread::get_id();
    });
    queue->run([&] { second = std::this_thread::get_id(); });
    queue->synchronize();
    EXPECT_EQ(size, threads);
    EXPECT_EQ(first, second);
    EXPECT_NE(first, std::this_thread::get_id());
  }
}

TEST(HostQueueTeams, QueuesOfOneDeviceRunAtTheSameTime) {
  NullTrafficSink sink;
  const auto device = make_host_device({}, sink);
  const auto first = device->create_queue({.name = "first"});
  const auto second = device->create_queue({.name = "second"});
  std::latch both(2);
  first->run([&both] { both.arrive_and_wait(); });
  second->run([&both] { both.arrive_and_wait(); });
  first->synchronize();
  second->synchronize();
}

TEST(HostQueueTeams, ATeamThatCannotBeIsRefusedWhenTheQueueIsMade) {
  NullTrafficSink sink;
  EXPECT_THROW(make_host_queue({.name = "none", .threads = 0}, {}, sink), std::invalid_argument);
}

TEST(HostQueueCopies, LargeCopiesAndFillsUseEveryByteOfTheirRangeAndNoOther) {
  NullTrafficSink sink;
  const auto queue = make_host_queue({.name = "copy", .threads = 3}, {}, sink);
  constexpr size_t kBytes = (size_t{3} << 20) + 17;
  constexpr size_t kGuard = 64;
  std::vector<uint8_t> source(kBytes);
  for (size_t i = 0; i < kBytes; ++i) source[i] = static_cast<uint8_t>(i * 7 + i / 251);
  std::vector<uint8_t> target(kBytes + 2 * kGuard, 0xee);
  queue->copy(target.data() + kGuard, source.data(), kBytes, CopyDirection::host_to_host, kTag);
  queue->synchronize();
  EXPECT_EQ(std::memcmp(target.data() + kGuard, source.data(), kBytes), 0);
  queue->fill_zero(target.data() + kGuard, kBytes);
  queue->synchronize();
  const std::vector<uint8_t> guard(kGuard, 0xee);
  EXPECT_EQ(std::vector<uint8_t>(target.begin(), target.begin() + kGuard), guard);
  EXPECT_EQ(std::vector<uint8_t>(target.end() - kGuard, target.end()), guard);
  EXPECT_EQ(std::vector<uint8_t>(target.begin() + kGuard, target.end() - kGuard),
            std::vector<uint8_t>(kBytes, 0));
}

TEST(HostDevice, SaysHowManyCoresItHas) {
  NullTrafficSink sink;
  const std::string description = make_host_device({}, sink)->description();
  EXPECT_EQ(description.rfind("host, " + std::to_string(std::thread::hardware_concurrency()), 0),
            0u)
      << description;
}

}  // namespace
}  // namespace strata
