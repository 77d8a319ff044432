#include "kernels/device/host_task.h"

#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <type_traits>

namespace strata {
namespace {

static_assert(!std::is_copy_constructible_v<HostTask>);
static_assert(std::is_nothrow_move_constructible_v<HostTask>);
static_assert(std::is_nothrow_move_assignable_v<HostTask>);

TEST(HostTask, RunsWhatItHoldsAsOftenAsAsked) {
  int runs = 0;
  HostTask task = [&runs] { ++runs; };
  ASSERT_TRUE(task);
  task();
  task();
  EXPECT_EQ(runs, 2);
}

TEST(HostTask, HoldsMoveOnlyClosures) {
  int seen = 0;
  HostTask task = [&seen, value = std::make_unique<int>(5)] { seen = *value; };
  HostTask moved = std::move(task);
  EXPECT_FALSE(task);
  moved();
  EXPECT_EQ(seen, 5);
}

TEST(HostTask, DestroysWhatItHoldsExactlyOnce) {
  const auto held = std::make_shared<int>(0);
  {
    HostTask task = [held] {};
    EXPECT_EQ(held.use_count(), 2);
    HostTask moved = std::move(task);
    EXPECT_EQ(held.use_count(), 2);
    HostTask assigned;
    assigned = std::move(moved);
    EXPECT_EQ(held.use_count(), 2);
    HostTask& same = assigned;
    assigned = std::move(same);
    EXPECT_EQ(held.use_count(), 2);
  }
  EXPECT_EQ(held.use_count(), 1);
}

TEST(HostTask, AssigningAndResettingLetGoOfTheOldClosure) {
  const auto first = std::make_shared<int>(0);
  const auto second = std::make_shared<int>(0);
  HostTask task = [first] {};
  task = [second] {};
  EXPECT_EQ(first.use_count(), 1);
  EXPECT_EQ(second.use_count(), 2);
  task.reset();
  EXPECT_EQ(second.use_count(), 1);
  EXPECT_FALSE(task);
  task.reset();
}

TEST(HostTask, AClosureOfFullCapacityFitsAndSurvivesMoves) {
  std::array<uint8_t, HostTask::kCapacityBytes - sizeof(int*)> bytes{};
  std::iota(bytes.begin(), bytes.end(), uint8_t{1});
  const int expected = std::accumulate(bytes.begin(), bytes.end(), 0);
  int sum = 0;
  auto closure = [out = &sum, bytes] { *out = std::accumulate(bytes.begin(), bytes.end(), 0); };
  static_assert(sizeof(closure) == HostTask::kCapacityBytes);
  HostTask task = closure;
  HostTask moved = std::move(task);
  moved();
  EXPECT_EQ(sum, expected);
}

TEST(HostTask, LetsExceptionsThroughAndStaysUsable) {
  HostTask task = [] { throw std::out_of_range("as it should"); };
  EXPECT_THROW(task(), std::out_of_range);
  EXPECT_THROW(task(), std::out_of_range);
}

}  // namespace
}  // namespace strata
