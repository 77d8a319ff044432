// P6: ten thousand bad days of a disk under the state store. Each ends in the bytes that were
// written or in an error that names a file and a place in it; never in other bytes.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "io/io_engine.h"
#include "strata/error.h"
#include "tests/io/simulated_disk.h"
#include "tests/offload/state_run.h"

namespace strata::offload {
namespace {

using io::DiskFault;
using io::FaultPlan;
using io::Op;

constexpr uint64_t kSteps = 3;
constexpr std::array<uint64_t, kSteps> kSalts = {11, 12, 13};

// Faults of a disk, then those of a kernel; the last three are nobody's loss.
enum class Kind : uint8_t {
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
constexpr size_t kKinds = io::kDiskFaultCount + 5;

std::string_view name(Kind kind) {
  constexpr std::array<std::string_view, 5> kOfKernel = {"EIO", "ENOSPC", "short transfers",
                                                         "EAGAIN, EINTR", "late and shuffled"};
  const auto index = static_cast<size_t>(kind);
  return index < io::kDiskFaultCount ? io::name(static_cast<DiskFault>(index))
                                     : kOfKernel[index - io::kDiskFaultCount];
}

enum class Outcome : uint8_t { identical, io_error, corruption, generation_before, silent };
constexpr size_t kOutcomes = 5;

// The transfers of two lives without faults.
struct Transfers {
  std::vector<Op> all;
  size_t first_life = 0;  // how many of them
};

class Schedule {
 public:
  Schedule(StateSite& site, uint64_t seed, bool checksums)
      : site_(site), checksums_(checksums), random_(seed), disk_(seed) {
    kernel_.seed = seed;
    kernel_.tally = &tally_;
  }

  // Adds a fault, somewhere in lives that make these transfers.
  void add(Kind kind, const Transfers& transfers);
  Outcome run();

  int64_t fired(Kind kind) const;
  Outcome recovered() const { return recovered_; }         // what the second life came to
  const std::string& message() const { return message_; }  // of the outcome
  Transfers transfers() const { return {disk_.transfers(), first_life_}; }

 private:
  std::unique_ptr<Pump> boot() {
    auto engine =
        std::make_unique<io::IoEngine>(io::make_fault_backend(disk_.connect(), kernel_),
                                       io::IoEngine::Options{.block_bytes = 16 << 10}, traffic_);
    return std::make_unique<Pump>(std::move(engine), 32);
  }
  // Runs a life; what ended it, identical meaning nothing.
  template <typename Life>
  Outcome live(const Life& life);
  Outcome recover(StateRun& run);

  StateSite& site_;
  const bool checksums_;
  std::mt19937_64 random_;
  io::SimulatedDisk disk_;
  io::FaultTally tally_;
  FaultPlan kernel_;
  NullTrafficSink traffic_;
  size_t first_life_ = 0;   // its transfers
  int64_t committed_ = -1;  // the generation that it came to
  Outcome recovered_ = Outcome::identical;
  std::string message_;
};

void Schedule::add(Kind kind, const Transfers& transfers) {
  const auto draw = [&](auto below) {
    return static_cast<int64_t>(random_() % static_cast<uint64_t>(below));
  };
  switch (kind) {
    case Kind::error:
      kernel_.fail_at = draw(transfers.first_life);
      kernel_.fail_errno = EIO;
      return;
    case Kind::no_space:
      do {
        kernel_.fail_at = draw(transfers.first_life);
      } while (transfers.all[static_cast<size_t>(kernel_.fail_at)] != Op::write);
      kernel_.fail_errno = ENOSPC;
      return;
    case Kind::short_transfers:
      kernel_.short_transfer_permille = 300;
      return;
    case Kind::again:
      kernel_.again_permille = 200;
      return;
    case Kind::late_and_shuffled:
      kernel_.delay_permille = 150;
      kernel_.max_delay_us = 20;
      kernel_.reorder = true;
      return;
    default:
      break;
  }
  const auto fault = static_cast<DiskFault>(kind);
  const std::optional<Op> op = befalls(fault);
  const auto size = std::ssize(transfers.all);
  const int64_t at = draw(op ? std::ranges::count(transfers.all, *op) : size);
  disk_.plan(fault, at);
  if (fault != DiskFault::lost_flush) return;
  // It shows when the power goes, some time after it.
  int64_t place = 0;
  for (int64_t flushes = 0; flushes <= at; ++place) {
    if (transfers.all[static_cast<size_t>(place)] == Op::flush) ++flushes;
  }
  disk_.plan(DiskFault::power_loss, place + draw(size - place));
}

int64_t Schedule::fired(Kind kind) const {
  switch (kind) {
    case Kind::error:
    case Kind::no_space:
      return tally_.errors;
    case Kind::short_transfers:
      return tally_.short_transfers;
    case Kind::again:
      return tally_.again;
    case Kind::late_and_shuffled:
      return tally_.delays;
    default:
      return disk_.fired(static_cast<DiskFault>(kind));
  }
}

template <typename Life>
Outcome Schedule::live(const Life& life) {
  const auto pump = boot();
  StateRun run(site_, *pump, checksums_);
  try {
    return life(run);
  } catch (const IoError& error) {
    message_ = error.what();
    return error.path.empty() ? Outcome::silent : Outcome::io_error;
  } catch (const CorruptionError& error) {
    message_ = error.what();
    const bool names_place = message_.find("at byte") != std::string::npos &&
                             (message_.find(site_.state_path()) != std::string::npos ||
                              message_.find(site_.journal_path()) != std::string::npos);
    return names_place ? Outcome::corruption : Outcome::silent;
  }
}

// What a later life finds. A beginning whose only record is damaged begins again, and loses
// nothing.
Outcome Schedule::recover(StateRun& run) {
  const std::optional<uint64_t> generation = run.recover();
  const int64_t found = generation ? static_cast<int64_t>(*generation) : -1;
  message_ = fmt::format("generation {} where {} was committed", found, committed_);
  if (found > committed_ + 1 || found < committed_ - 1) return Outcome::silent;
  if (generation && !run.holds(std::span(kSalts).first(*generation))) {
    message_ += ", and other bytes than its own";
    return Outcome::silent;
  }
  return found < committed_ ? Outcome::generation_before : Outcome::identical;
}

Outcome Schedule::run() {
  Outcome first = live([&](StateRun& run) {
    run.begin();
    committed_ = 0;
    for (const uint64_t salt : kSalts) {
      run.step(salt);
      run.commit();
      ++committed_;
    }
    message_ = "the life that wrote them reads other bytes";
    return run.holds(kSalts) ? Outcome::identical : Outcome::silent;
  });
  first_life_ = disk_.transfers().size();
  if (first == Outcome::silent) return first;
  disk_.restore_power();
  kernel_.fail_at = -1;
  recovered_ = live([&](StateRun& run) { return recover(run); });
  // What is told first counts, but nothing makes up for silence.
  return recovered_ == Outcome::silent || first == Outcome::identical ? recovered_ : first;
}

Transfers transfers_without_faults() {
  StateSite site;
  Schedule clean(site, 0, /*checksums=*/true);
  EXPECT_EQ(clean.run(), Outcome::identical) << clean.message();
  return clean.transfers();
}

struct Row {
  int64_t fired = 0;
  std::array<int64_t, kOutcomes> outcomes = {};
  Row& operator+=(const Row& other) {
    fired += other.fired;
    for (size_t i = 0; i < kOutcomes; ++i) outcomes[i] += other.outcomes[i];
    return *this;
  }
};
using Table = std::array<Row, kKinds + 1>;  // the last is of two faults together

void print(const Table& table) {
  constexpr const char* kFormat = "{:18} {:>9} {:>9} {:>8} {:>10} {:>10} {:>6}\n";
  fmt::print(kFormat, "fault", "fired", "identical", "IoError", "Corruption", "gen before",
             "silent");
  for (size_t kind = 0; kind < table.size(); ++kind) {
    const auto& [fired, outcomes] = table[kind];
    fmt::print(kFormat, kind < kKinds ? name(static_cast<Kind>(kind)) : "two of these", fired,
               outcomes[0], outcomes[1], outcomes[2], outcomes[3], outcomes[4]);
  }
}

bool is_mended(Kind kind) { return kind >= Kind::short_transfers; }
bool is_reported(Kind kind) { return kind == Kind::error || kind == Kind::no_space; }

void play(const Transfers& transfers, StateSite& site, uint64_t seed, Table& table) {
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  Schedule schedule(site, seed, /*checksums=*/true);
  const auto kind = static_cast<Kind>(seed % kKinds);
  schedule.add(kind, transfers);
  const auto second = static_cast<Kind>(random() % kKinds);
  const bool two = random() % 4 == 0 && second != kind;
  if (two) schedule.add(second, transfers);
  const Outcome outcome = schedule.run();
  // Of two faults one may end the life before the other comes.
  const int64_t fired = schedule.fired(kind) + (two ? schedule.fired(second) : 0);
  EXPECT_GT(fired, 0) << name(kind);
  EXPECT_NE(outcome, Outcome::silent) << name(kind) << ": " << schedule.message();
  if (is_mended(kind) && !two) {
    EXPECT_EQ(outcome, Outcome::identical) << name(kind) << ": " << schedule.message();
  }
  // An error that the kernel reports ends a life, and harms nothing that was committed.
  if (is_reported(kind) && !two) {
    EXPECT_EQ(schedule.recovered(), Outcome::identical) << name(kind) << ": " << schedule.message();
  }
  Row& row = table[two ? kKinds : static_cast<size_t>(kind)];
  row.fired += fired;
  ++row.outcomes[static_cast<size_t>(outcome)];
}

TEST(FaultSchedulesTest, EndInTheSameBytesOrInAnErrorThatNamesAPlace) {
  constexpr uint64_t kSchedules = 10'000;
  constexpr size_t kThreads = 2;
  const Transfers transfers = transfers_without_faults();
  std::array<Table, kThreads> tables;
  std::vector<std::thread> threads;
  for (size_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      StateSite site;
      for (uint64_t seed = 1 + thread; seed <= kSchedules && !testing::Test::HasFailure();
           seed += kThreads) {
        play(transfers, site, seed, tables[thread]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  Table all;
  for (const Table& table : tables) {
    for (size_t kind = 0; kind < all.size(); ++kind) all[kind] += table[kind];
  }
  print(all);
}

// That the test can fail: without checksums a flipped bit is nobody's business.
TEST(FaultSchedulesTest, FindWhatIsSilentWithoutChecksums) {
  const Transfers transfers = transfers_without_faults();
  StateSite site;
  int silent = 0;
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    Schedule schedule(site, seed, /*checksums=*/false);
    schedule.add(seed % 2 == 0 ? Kind::flipped_read : Kind::flipped_write, transfers);
    if (schedule.run() == Outcome::silent) ++silent;
  }
  EXPECT_GT(silent, 50);
  fmt::print("without checksums {} of 200 flipped bits are silent\n", silent);
}

}  // namespace
}  // namespace strata::offload
