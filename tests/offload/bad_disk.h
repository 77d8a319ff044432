// A simulated disk behind a kernel that fails, and faults of both, in a schedule that a seed draws.
// What tests of P6 tell of them, in a table.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <string_view>
#include <thread>
#include <vector>

#include "io/io_backend.h"
#include "tests/io/simulated_disk.h"

namespace strata::offload {

// Faults of a disk, then those of a kernel; the last three are nobody's loss.
enum class FaultKind : uint8_t {
  flipped_read,
  misdirected_read,
  flipped_write,
  torn_write,
  lost_write,
  misdirected_write,
  lost_flush,
  power_loss,
  error,
  no_space,
  short_transfers,
  again,
  late_and_shuffled,
};
inline constexpr size_t kFaultKinds = io::kDiskFaultCount + 5;
std::string_view name(FaultKind kind);
inline bool is_mended(FaultKind kind) { return kind >= FaultKind::short_transfers; }
inline bool is_reported(FaultKind kind) {
  return kind == FaultKind::error || kind == FaultKind::no_space;
}

// The transfers of a schedule without faults.
struct Transfers {
  std::vector<io::Op> all;
  size_t first_life = 0;  // how many of them; the kernel reports errors in these
};

class BadDisk {
 public:
  explicit BadDisk(uint64_t seed);

  // Adds a fault, somewhere in lives that make these transfers.
  void add(FaultKind kind, const Transfers& transfers);
  // A life's backend.
  std::unique_ptr<io::IoBackend> connect();
  // For the next life: power, and no error any more.
  void restore();

  int64_t fired(FaultKind kind) const;
  std::vector<io::Op> transfers() const { return disk_.transfers(); }

 private:
  int64_t draw(int64_t below) {
    return static_cast<int64_t>(random_() % static_cast<uint64_t>(below));
  }
  void add(io::DiskFault fault, const Transfers& transfers);

  std::mt19937_64 random_;
  io::SimulatedDisk disk_;
  io::FaultTally tally_;
  io::FaultPlan kernel_;
};

enum class Outcome : uint8_t { identical, io_error, corruption, generation_before, silent };
inline constexpr size_t kOutcomes = 5;

// How schedules ended, by fault.
class OutcomeTable {
 public:
  void add(FaultKind kind, bool with_another, int64_t fired, Outcome outcome);
  OutcomeTable& operator+=(const OutcomeTable& other);
  void print() const;

 private:
  struct Row {
    int64_t fired = 0;
    std::array<int64_t, kOutcomes> outcomes = {};
  };
  std::array<Row, kFaultKinds + 1> rows_ = {};  // the last is of two faults together
};

// Plays the schedules of seeds 1 to `schedules` on two threads, as long as the test has not failed,
// and prints how they ended. Each thread has a player of its own, make_player(), and calls
// player(seed, table).
template <typename MakePlayer>
void play_all(uint64_t schedules, const MakePlayer& make_player) {
  constexpr size_t kThreads = 2;
  std::array<OutcomeTable, kThreads> tables;
  std::vector<std::thread> threads;
  for (size_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      auto player = make_player();
      for (uint64_t seed = 1 + thread; seed <= schedules && !testing::Test::HasFailure();
           seed += kThreads) {
        player(seed, tables[thread]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  OutcomeTable all;
  for (const OutcomeTable& table : tables) all += table;
  all.print();
}

}  // namespace strata::offload
