#include "engine/plan/host_share.h"

namespace strata::engine {
namespace {

// Bandwidths alone would ask for 3, whatever they are: with T the time of the slowest stage, a
// sub-group starts every T, and since reads and writes share the disk, reading, updating and
// writing one take at most T each. But disks answer late now and then, and a small sub-group leaves
// the disk idle while it waits for its last request: with split16 and int8 `strata bench pipeline`
// reached 0.76 of the disk with 4 buffers and 0.81 with 8 beside other work, and 0.96 with 8 alone.
//
// More of them would only hold state that is read ahead under forward and backward. The same memory
// does more as pinned state, which is neither read nor written: auto leaves it to that.
constexpr int kMostStagingBuffers = 8;

// One that is used, one that is there, one on its way.
constexpr int kMostTransfersAhead = 3;

}  // namespace

HostShare choose_transfers(const TryHostShare& holds) {
  HostShare share;
  share.transfers_ahead = kMostTransfersAhead;
  while (share.transfers_ahead > 1 && !holds(share)) --share.transfers_ahead;
  return share;
}

HostShare choose_staging(const Config& config, HostShare share, const TryHostShare& holds) {
  const int asked = config.staging_buffers;
  share.staging_buffers = !config.overlap                        ? 1
                          : asked != Config::kAutoStagingBuffers ? asked
                                                                 : kMostStagingBuffers;
  while (!holds(share) && asked == Config::kAutoStagingBuffers && share.staging_buffers > 1) {
    --share.staging_buffers;
  }
  return share;
}

HostShare choose_pinned(HostShare share, int64_t grains, const TryHostShare& holds) {
  const auto fits = [&](int64_t until) {
    share.pinned_until = until;
    return holds(share);
  };
  // All of it may need less than a part: nothing is staged any more.
  if (fits(grains)) return share;
  int64_t most = 0;
  int64_t too_many = grains;
  while (too_many - most > 1) {
    const int64_t middle = most + (too_many - most) / 2;
    (fits(middle) ? most : too_many) = middle;
  }
  share.pinned_until = most;
  return share;
}

}  // namespace strata::engine
