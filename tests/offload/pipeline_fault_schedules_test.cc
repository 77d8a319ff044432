// P6: some thousand bad days of a disk under the optimizer pipeline. Each ends in the bits of a run
// on a good one, or in an error that names a file; never in other bits, and never not at all.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <random>
#include <string>

#include "strata/error.h"
#include "tests/offload/bad_disk.h"
#include "tests/offload/toy_rig.h"

namespace strata::offload {
namespace {

constexpr int kSteps = 2;

// What a step is made of.
enum class Flow : uint8_t { updates, redone, restored };

// How a pipeline works. Parameters and gradients on nvme have no checksums.
struct Way {
  const TierSetup& setup;
  int slots = 1;
  int buffers = 2;
  bool overlap = true;
  Flow flow = Flow::updates;
};
const Way kWays[] = {
    {kSetups[2]},
    {kSetups[3], 2, 3},
    {kSetups[2], 2, 1, true, Flow::redone},
    {kSetups[3], 2, 2, true, Flow::restored},
    {kSetups[4], 1, 2, false},
    {kSetups[5], 2},
    {kSetups[6]},
};
constexpr size_t kWaysWithChecksums = 5;  // of all that is on nvme, the first ones

struct Ending {
  Outcome outcome = Outcome::identical;
  std::string message = {};
  int error_number = 0;
};

void make_step(ToyRig& rig, Flow flow) {
  const auto submit = [&](Purpose purpose) {
    for (const int32_t sub_group : rig.order()) rig.pipeline().submit(sub_group, purpose);
    rig.await_parameters();
  };
  rig.pipeline().read_ahead(rig.order());
  if (flow != Flow::updates) submit(Purpose::speculation);
  if (flow == Flow::restored) {
    rig.pipeline().settle();
    submit(Purpose::restoration);
  }
  submit(Purpose::update);
  rig.commit();
}

// A whole life on this disk.
Ending live(BadDisk& disk, const Way& way, uint64_t seed, bool checksums) {
  try {
    ToyOptions options;
    options.grains = 5;
    options.sub_group_grains = 2;
    options.slots = way.slots;
    options.buffers = way.buffers;
    options.update_threads = 1;  // of more, all but one spin
    options.overlap = way.overlap;
    options.seed = seed % 16 == 0 ? seed : 0;  // of some, queues are late as well
    options.backend = disk.connect();
    options.checksums = checksums;
    ToyRig rig(way.setup, std::move(options));
    rig.fill();
    for (int step = 0; step < kSteps; ++step) make_step(rig, way.flow);
    const auto difference = rig.difference(kSteps);
    if (difference) return {Outcome::silent, *difference};
    return {};
  } catch (const IoError& error) {
    const bool names_file = !error.path.empty() && error.error_number != 0;
    return {names_file ? Outcome::io_error : Outcome::silent, error.what(), error.error_number};
  } catch (const CorruptionError& error) {
    const std::string message = error.what();
    const bool names_place = message.find("at byte") != std::string::npos;
    return {names_place ? Outcome::corruption : Outcome::silent, message};
  }
}

using TransfersOfWays = std::array<Transfers, std::size(kWays)>;

TransfersOfWays transfers_without_faults() {
  TransfersOfWays transfers;
  for (size_t way = 0; way < transfers.size(); ++way) {
    BadDisk disk(0);
    const Ending ending = live(disk, kWays[way], 1, /*checksums=*/true);
    EXPECT_EQ(ending.outcome, Outcome::identical) << way << ": " << ending.message;
    transfers[way] = {disk.transfers(), disk.transfers().size()};
  }
  return transfers;
}

// A flush that is lost shows to nobody who does not come back after the power went.
FaultKind draw_kind(uint64_t number) {
  const auto kind = static_cast<FaultKind>(number % (kFaultKinds - 1));
  return kind < FaultKind::lost_flush ? kind
                                      : static_cast<FaultKind>(number % (kFaultKinds - 1) + 1);
}
bool is_of_disk(FaultKind kind) { return kind < FaultKind::power_loss; }

void play(const TransfersOfWays& transfers, uint64_t seed, OutcomeTable& table) {
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  const FaultKind kind = draw_kind(seed);
  const FaultKind second = draw_kind(random());
  const bool two = random() % 4 == 0 && second != kind;
  const bool lies = is_of_disk(kind) || (two && is_of_disk(second));
  const bool checksums = lies || random() % 2 == 0;
  const size_t way = random() % (lies ? kWaysWithChecksums : std::size(kWays));
  BadDisk disk(seed);
  disk.add(kind, transfers[way]);
  if (two) disk.add(second, transfers[way]);
  const Ending ending = live(disk, kWays[way], seed, checksums);
  const int64_t fired = disk.fired(kind) + (two ? disk.fired(second) : 0);
  EXPECT_GT(fired, 0) << name(kind);
  EXPECT_NE(ending.outcome, Outcome::silent) << name(kind) << ": " << ending.message;
  if (!two && is_mended(kind)) {
    EXPECT_EQ(ending.outcome, Outcome::identical) << name(kind) << ": " << ending.message;
  }
  if (!two && is_reported(kind)) {
    EXPECT_EQ(ending.outcome, Outcome::io_error) << name(kind) << ": " << ending.message;
    EXPECT_EQ(ending.error_number, kind == FaultKind::error ? EIO : ENOSPC);
  }
  table.add(kind, two, fired, ending.outcome);
}

TEST(PipelineFaultSchedulesTest, EndInTheSameBitsOrInAnErrorThatNamesAFile) {
  constexpr uint64_t kSchedules = 2'000;
  const TransfersOfWays transfers = transfers_without_faults();
  play_all(kSchedules, [&] {
    return [&](uint64_t seed, OutcomeTable& table) { play(transfers, seed, table); };
  });
}

// That the test can fail.
TEST(PipelineFaultSchedulesTest, FindWhatIsSilentWithoutChecksums) {
  const TransfersOfWays transfers = transfers_without_faults();
  int silent = 0;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    BadDisk disk(seed);
    const size_t way = seed % kWaysWithChecksums;
    disk.add(FaultKind::flipped_read, transfers[way]);
    if (live(disk, kWays[way], seed, /*checksums=*/false).outcome == Outcome::silent) ++silent;
  }
  EXPECT_GT(silent, 30);
  fmt::print("without checksums {} of 60 flipped bits are silent\n", silent);
}

}  // namespace
}  // namespace strata::offload
