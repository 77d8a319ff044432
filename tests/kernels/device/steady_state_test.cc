// Once a queue is made and its team has run, operations take nothing from the system.
#include <gtest/gtest.h>

#include <atomic>

#include "kernels/device/host_device.h"
#include "kernels/device/thread_team.h"
#include "tests/interposition.h"

namespace strata {
namespace {

class SteadyStateTest : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(TeamSizes, SteadyStateTest, testing::Values(1, 2));

TEST_P(SteadyStateTest, QueuesTakeNothing) {
  NullTrafficSink sink;
  const auto device = make_host_device({}, sink);
  const auto first = device->create_queue({.name = "first", .threads = GetParam()});
  const auto second = device->create_queue({.name = "second", .threads = GetParam()});
  constexpr size_t kBytes = size_t{1} << 20;
  const MemoryBlock a = device->allocate(kBytes);
  const MemoryBlock b = device->allocate_pinned(kBytes);
  std::atomic<int64_t> sum = 0;
  const auto step = [&] {
    first->copy(a.data(), b.data(), kBytes, CopyDirection::host_to_device, {});
    second->wait(first->record(), {});
    second->run([&sum] {
      parallel_for(1000, 10, [&sum](int64_t begin, int64_t end) { sum += end - begin; });
    });
    second->fill_zero(a.data(), kBytes);
    first->wait(second->record(), {});
  };
  step();
  first->synchronize();
  const auto before = testing_support::acquisitions();
  for (int i = 0; i < 500; ++i) step();  // enough to go around the rings
  first->synchronize();
  EXPECT_EQ(testing_support::acquisitions(), before);
  EXPECT_EQ(sum, 501 * 1000);
  second->synchronize();
}

}  // namespace
}  // namespace strata
