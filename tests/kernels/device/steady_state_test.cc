// Once a queue is made and its team has run, operations allocate nothing.
#include <gtest/gtest.h>

#include <atomic>
#include <vector>

#include "kernels/device/host_device.h"
#include "kernels/device/thread_team.h"
#include "tests/kernels/device/counting_new.h"

namespace strata {
namespace {

TEST(SteadyState, TheCounterCounts) {
  const int64_t before = allocations();
  std::vector<int> something(1000);
  EXPECT_EQ(allocations(), before + 1);
}

class SteadyStateTest : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(TeamSizes, SteadyStateTest, testing::Values(1, 2));

TEST_P(SteadyStateTest, QueuesAllocateNothing) {
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
  const int64_t before = allocations();
  for (int i = 0; i < 500; ++i) step();  // enough to go around the rings
  first->synchronize();
  EXPECT_EQ(allocations(), before);
  EXPECT_EQ(sum, 501 * 1000);
  second->synchronize();
}

}  // namespace
}  // namespace strata
