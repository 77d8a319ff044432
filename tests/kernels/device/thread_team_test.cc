#include "kernels/device/thread_team.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <limits>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <tuple>
#include <vector>

#include "kernels/device/backends.h"
#include "kernels/device/cpu_topology.h"
#include "kernels/device/team_partition.h"

namespace strata {
namespace {

using Ranges = std::vector<std::pair<int64_t, int64_t>>;

Ranges partition_of(int64_t count, int64_t multiple, int parts) {
  Ranges ranges;
  for (int part = 0; part < parts; ++part) {
    const internal::Range range = internal::partition(count, multiple, part, parts);
    if (!range.empty()) ranges.emplace_back(range.begin, range.end);
  }
  return ranges;
}

Ranges ranges_run(int64_t count, int64_t multiple) {
  std::mutex mutex;
  Ranges ranges;
  parallel_for(count, multiple, [&](int64_t begin, int64_t end) {
    const std::lock_guard lock(mutex);
    ranges.emplace_back(begin, end);
  });
  std::sort(ranges.begin(), ranges.end());
  return ranges;
}

// Count, multiple, parts.
class PartitionTest : public testing::TestWithParam<std::tuple<int64_t, int64_t, int>> {};
INSTANTIATE_TEST_SUITE_P(Shapes, PartitionTest,
                         testing::Combine(testing::Values(0, 1, 2, 5, 63, 64, 65, 1000, 4096, 4097,
                                                          100'000, int64_t{1} << 40,
                                                          int64_t{1} << 61),
                                          testing::Values(1, 2, 64, 4096),
                                          testing::Values(1, 2, 3, 7, 16)));

TEST_P(PartitionTest, CoversEachIndexOnceInOrderAtMultiplesAndEvenly) {
  const auto [count, multiple, parts] = GetParam();
  int64_t at = 0;
  int64_t smallest = std::numeric_limits<int64_t>::max();
  int64_t largest = 0;
  for (int part = 0; part < parts; ++part) {
    const internal::Range range = internal::partition(count, multiple, part, parts);
    if (range.empty()) {
      smallest = 0;
      continue;
    }
    EXPECT_EQ(range.begin, at);
    EXPECT_EQ(range.begin % multiple, 0);
    const int64_t units = round_up(range.end - range.begin, multiple) / multiple;
    smallest = std::min(smallest, units);
    largest = std::max(largest, units);
    at = range.end;
  }
  EXPECT_EQ(at, count);
  EXPECT_LE(largest - smallest, 1);
}

class ThreadTeamTest : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(TeamSizes, ThreadTeamTest, testing::Values(1, 2, 3, 5));

TEST_P(ThreadTeamTest, RunsExactlyTheSharedPartition) {
  const TeamScope scope(GetParam());
  EXPECT_EQ(team_size(), GetParam());
  for (const int64_t count : {0, 1, 7, 64, 65, 1000, 12345}) {
    for (const int64_t multiple : {1, 8, 64}) {
      const Ranges expected = count <= multiple ? partition_of(count, multiple, 1)
                                                : partition_of(count, multiple, GetParam());
      EXPECT_EQ(ranges_run(count, multiple), expected) << count << " by " << multiple;
    }
  }
}

TEST_P(ThreadTeamTest, ItsThreadsAreInTheLoopAtTheSameTime) {
  const int threads = GetParam();
  const TeamScope scope(threads);
  std::barrier all(threads);
  for (int i = 0; i < 3; ++i) {
    parallel_for(threads, 1, [&all](int64_t, int64_t) { all.arrive_and_wait(); });
  }
}

TEST_P(ThreadTeamTest, WhatTheLoopWroteIsVisibleBehindIt) {
  const TeamScope scope(GetParam());
  std::vector<int64_t> values(1000, 0);
  for (int round = 1; round <= 50; ++round) {
    parallel_for(1000, 1, [&values](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) values[i] += i;
    });
    const int64_t sum = std::accumulate(values.begin(), values.end(), int64_t{0});
    ASSERT_EQ(sum, round * int64_t{1000} * 999 / 2);
  }
}

TEST_P(ThreadTeamTest, ALoopInsideALoopStaysOnItsThread) {
  const TeamScope scope(GetParam());
  std::atomic<int> inner_ranges = 0;
  std::atomic<int> outer_ranges = 0;
  std::atomic<bool> alone = true;
  parallel_for(100, 1, [&](int64_t, int64_t) {
    ++outer_ranges;
    if (team_size() != 1 && GetParam() > 1) alone = false;
    const std::thread::id self = std::this_thread::get_id();
    parallel_for(100, 1, [&](int64_t begin, int64_t end) {
      ++inner_ranges;
      if (begin != 0 || end != 100 || std::this_thread::get_id() != self) alone = false;
    });
  });
  if (GetParam() > 1) {
    EXPECT_EQ(inner_ranges, GetParam());
    EXPECT_TRUE(alone);
  }
  EXPECT_EQ(outer_ranges, GetParam());
  EXPECT_EQ(team_size(), GetParam());
}

TEST_P(ThreadTeamTest, FixesTheThreadsOfOpenMpLibrariesAndRestoresThem) {
  const int outside = omp_get_max_threads();
  {
    const TeamScope scope(GetParam());
    EXPECT_EQ(omp_get_max_threads(), parallel_backend() == "openmp" ? GetParam() : 1);
  }
  EXPECT_EQ(omp_get_max_threads(), outside);
  EXPECT_EQ(team_size(), 1);
}

// By the part of a loop that each thread gets.
std::vector<CpuPlace> places_of_team() {
  std::vector<CpuPlace> places(static_cast<size_t>(team_size()));
  parallel_for(team_size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) places[static_cast<size_t>(i)] = place_of_this_thread();
  });
  return places;
}

TEST_P(ThreadTeamTest, EachThreadKeepsToItsPlaceWhileTheScopeLasts) {
  const CpuPlace outside = place_of_this_thread();
  std::vector<CpuPlace> places;
  for (size_t i = 0; i < static_cast<size_t>(GetParam()); ++i) {
    places.push_back({outside[i % outside.size()]});
  }
  {
    const TeamScope scope(GetParam(), places);
    for (int round = 0; round < 20; ++round) EXPECT_EQ(places_of_team(), places);
  }
  EXPECT_EQ(place_of_this_thread(), outside);
  const TeamScope scope(GetParam());
  EXPECT_EQ(places_of_team(), std::vector<CpuPlace>(places.size(), outside));
}

TEST(ThreadTeam, PlacesThatMakeNoSenseAreRefused) {
  const CpuPlace outside = place_of_this_thread();
  EXPECT_THROW(TeamScope(2, std::vector<CpuPlace>{outside}), std::invalid_argument);
  const std::vector<CpuPlace> nowhere = {outside, {1 << 16}};
  EXPECT_THROW(TeamScope(2, nowhere), std::system_error);
  EXPECT_EQ(place_of_this_thread(), outside);
  EXPECT_EQ(team_size(), 1);
  const TeamScope scope(2);
  EXPECT_EQ(places_of_team(), std::vector<CpuPlace>(2, outside));
}

TEST(ThreadTeam, OutsideAScopeTheCallingThreadWorksAlone) {
  EXPECT_EQ(team_size(), 1);
  const std::thread::id self = std::this_thread::get_id();
  int calls = 0;
  parallel_for(1000, 8, [&](int64_t begin, int64_t end) {
    ++calls;
    EXPECT_EQ(begin, 0);
    EXPECT_EQ(end, 1000);
    EXPECT_EQ(std::this_thread::get_id(), self);
  });
  EXPECT_EQ(calls, 1);
}

TEST(ThreadTeam, ScopesThatMakeNoSenseAreRefused) {
  EXPECT_THROW(TeamScope(0), std::invalid_argument);
  const TeamScope scope(2);
  EXPECT_THROW(TeamScope(2), std::logic_error);
  EXPECT_EQ(team_size(), 2);
  EXPECT_EQ(ranges_run(100, 1), partition_of(100, 1, 2));
}

TEST(ThreadTeam, SeveralMastersLoopAtTheSameTime) {
  constexpr int kMasters = 3;
  std::barrier together(kMasters);
  std::vector<int> wrong(kMasters, 0);
  {
    std::vector<std::jthread> masters;
    for (int master = 0; master < kMasters; ++master) {
      masters.emplace_back([&, master] {
        const TeamScope scope(1 + master);
        std::vector<int64_t> values(500);
        together.arrive_and_wait();
        for (int round = 0; round < 100; ++round) {
          parallel_for(500, 4, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) values[i] = master * 1000 + round + i;
          });
          for (int64_t i = 0; i < 500; ++i) wrong[master] += values[i] != master * 1000 + round + i;
        }
      });
    }
  }
  EXPECT_EQ(wrong, std::vector<int>(kMasters, 0));
}

}  // namespace
}  // namespace strata
