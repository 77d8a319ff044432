#include "tests/engine/comm/failure_scenarios.h"

#include <array>
#include <chrono>
#include <string_view>
#include <thread>
#include <vector>

#include "strata/error.h"

namespace strata::testing_support {
namespace {

constexpr TrafficTag kTag = {StateKind::param, 0, "gather"};

void sleep_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

void gather(Rank& rank, uint64_t shard_bytes = 100) {
  std::vector<std::byte> flat(rank.size() * shard_bytes);
  rank.communicator->all_gather(flat.data(), shard_bytes, kTag);
  rank.queue->synchronize();
}

// Ranks go at different times, while others still gather or are done long ago.
void end_well(Rank& rank) {
  for (int i = 0; i < 20; ++i) gather(rank);
  sleep_ms(20 * rank.rank());
  rank.communicator.reset();
}

// Rank 0 is waiting by then, rank 2 comes later.
void abort_with(Rank& rank, std::string_view reason) {
  gather(rank);
  if (rank.rank() == 1) {
    sleep_ms(30);
    rank.communicator->abort(reason);
    rank.communicator->abort("another reason");
  }
  if (rank.rank() == 2) sleep_ms(60);
  gather(rank);
}

void abort_plainly(Rank& rank) { abort_with(rank, "the disk is full"); }
void abort_with_newlines(Rank& rank) { abort_with(rank, "one\ntwo\r\nthree\x1b[31m"); }
void abort_at_length(Rank& rank) { abort_with(rank, "long " + std::string(1 << 20, 'x')); }

void disagree_on_bytes(Rank& rank) {
  gather(rank);
  gather(rank, rank.rank() == 1 ? 200 : 100);
}

void disagree_on_verbs(Rank& rank) {
  gather(rank);
  if (rank.rank() != 1) return gather(rank);
  std::array<std::byte, 100> mine = {};
  std::array<std::byte, 300> all = {};
  rank.communicator->exchange(mine, all);
}

void leave(Rank& rank) {
  gather(rank);
  if (rank.rank() == 1) {
    sleep_ms(30);
    rank.communicator.reset();
    return;
  }
  if (rank.rank() == 2) sleep_ms(60);
  gather(rank);
}

// Before anybody has traded anything.
void leave_at_once(Rank& rank) {
  if (rank.rank() == 1) return rank.communicator.reset();
  gather(rank);
}

// Comes too late by far, and is told so.
void stall(Rank& rank) {
  gather(rank);
  if (rank.rank() == 1) sleep_ms(2000);
  gather(rank);
}

constexpr double kLong_s = 120;
constexpr FailureScenario kScenarios[] = {
    {.name = "end_well", .run = end_well, .timeout_s = kLong_s, .told = ""},
    {.name = "abort_plainly",
     .run = abort_plainly,
     .timeout_s = kLong_s,
     .told = "rank 1 failed: the disk is full"},
    {.name = "abort_with_newlines",
     .run = abort_with_newlines,
     .timeout_s = kLong_s,
     .told = "rank 1 failed: one two  three \\[31m"},
    {.name = "abort_at_length",
     .run = abort_at_length,
     .timeout_s = kLong_s,
     .told = "rank 1 failed: long x*\\.\\.\\."},
    {.name = "disagree_on_bytes",
     .run = disagree_on_bytes,
     .timeout_s = kLong_s,
     .told = "ranks (0 and 1|1 and 2) disagree: all_gather \\(gather\\) of [12]00 bytes against "
             "all_gather \\(gather\\) of [12]00 bytes"},
    {.name = "disagree_on_verbs",
     .run = disagree_on_verbs,
     .timeout_s = kLong_s,
     .told =
         "ranks (0 and 1 disagree: all_gather \\(gather\\) of 100 bytes against exchange|1 and 2 "
         "disagree: exchange of 100 bytes against all_gather \\(gather\\)) of 100 bytes"},
    {.name = "leave",
     .run = leave,
     .timeout_s = kLong_s,
     .told = "rank 1 left the run while rank [02] waited for it in all_gather \\(gather\\)",
     .rank_1_is_told = false},
    {.name = "leave_at_once",
     .run = leave_at_once,
     .timeout_s = kLong_s,
     .told = "rank 1 left the run while rank [02] waited for it in all_gather \\(gather\\)",
     .rank_1_is_told = false},
    {.name = "stall",
     .run = stall,
     .timeout_s = 0.2,
     .told = "rank 1 did not come to all_gather \\(gather\\) within 0.2 s"},
};

}  // namespace

std::span<const FailureScenario> failure_scenarios() { return kScenarios; }

std::string told_in(const FailureScenario& scenario, Rank& rank) {
  try {
    scenario.run(rank);
    return "";
  } catch (const CommError& error) {
    return error.what();
  }
}

}  // namespace strata::testing_support
