// P6: ten thousand bad days of a disk under the state store. Each ends in the bytes that were
// written or in an error that names a file and a place in it; never in other bytes.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>

#include "io/io_engine.h"
#include "strata/error.h"
#include "tests/offload/bad_disk.h"
#include "tests/offload/state_run.h"

namespace strata::offload {
namespace {

constexpr uint64_t kSteps = 3;
constexpr std::array<uint64_t, kSteps> kSalts = {11, 12, 13};

class Schedule {
 public:
  Schedule(StateSite& site, uint64_t seed, bool checksums)
      : site_(site), checksums_(checksums), disk_(seed) {}

  BadDisk& disk() { return disk_; }
  Outcome run();

  Outcome recovered() const { return recovered_; }         // what the second life came to
  const std::string& message() const { return message_; }  // of the outcome
  Transfers transfers() const { return {disk_.transfers(), first_life_}; }

 private:
  std::unique_ptr<Pump> boot() {
    return std::make_unique<Pump>(
        std::make_unique<io::IoEngine>(disk_.connect(),
                                       io::IoEngine::Options{.block_bytes = 16 << 10}, traffic_),
        32);
  }
  // Runs a life; what ended it, identical meaning nothing.
  template <typename Life>
  Outcome live(const Life& life);
  Outcome recover(StateRun& run);

  StateSite& site_;
  const bool checksums_;
  BadDisk disk_;
  NullTrafficSink traffic_;
  size_t first_life_ = 0;   // its transfers
  int64_t committed_ = -1;  // the generation that it came to
  Outcome recovered_ = Outcome::identical;
  std::string message_;
};

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
  disk_.restore();
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

void play(const Transfers& transfers, StateSite& site, uint64_t seed, OutcomeTable& table) {
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  Schedule schedule(site, seed, /*checksums=*/true);
  const auto kind = static_cast<FaultKind>(seed % kFaultKinds);
  schedule.disk().add(kind, transfers);
  const auto second = static_cast<FaultKind>(random() % kFaultKinds);
  const bool two = random() % 4 == 0 && second != kind;
  if (two) schedule.disk().add(second, transfers);
  const Outcome outcome = schedule.run();
  // Of two faults one may end the life before the other comes.
  const int64_t fired = schedule.disk().fired(kind) + (two ? schedule.disk().fired(second) : 0);
  EXPECT_GT(fired, 0) << name(kind);
  EXPECT_NE(outcome, Outcome::silent) << name(kind) << ": " << schedule.message();
  if (is_mended(kind) && !two) {
    EXPECT_EQ(outcome, Outcome::identical) << name(kind) << ": " << schedule.message();
  }
  // An error that the kernel reports ends a life, and harms nothing that was committed.
  if (is_reported(kind) && !two) {
    EXPECT_EQ(schedule.recovered(), Outcome::identical) << name(kind) << ": " << schedule.message();
  }
  table.add(kind, two, fired, outcome);
}

TEST(FaultSchedulesTest, EndInTheSameBytesOrInAnErrorThatNamesAPlace) {
  constexpr uint64_t kSchedules = 10'000;
  const Transfers transfers = transfers_without_faults();
  play_all(kSchedules, [&] {
    return [&transfers, site = std::make_unique<StateSite>()](uint64_t seed, OutcomeTable& table) {
      play(transfers, *site, seed, table);
    };
  });
}

// That the test can fail: without checksums a flipped bit is nobody's business.
TEST(FaultSchedulesTest, FindWhatIsSilentWithoutChecksums) {
  const Transfers transfers = transfers_without_faults();
  StateSite site;
  int silent = 0;
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    Schedule schedule(site, seed, /*checksums=*/false);
    schedule.disk().add(seed % 2 == 0 ? FaultKind::flipped_read : FaultKind::flipped_write,
                        transfers);
    if (schedule.run() == Outcome::silent) ++silent;
  }
  EXPECT_GT(silent, 50);
  fmt::print("without checksums {} of 200 flipped bits are silent\n", silent);
}

}  // namespace
}  // namespace strata::offload
