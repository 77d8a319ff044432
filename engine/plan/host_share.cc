#include "engine/plan/host_share.h"

namespace strata::engine {
namespace {

// One to read into, one to update, one to write from, and one so that a stage need not wait where
// another was late.
//
// That is enough at any bandwidth: with T the time of the slowest stage, a sub-group starts every
// T. Reads and writes share the disk, so together they take at most T a sub-group, and each of
// them, slowed down by the other, at most T; so does the update. A sub-group is under way for at
// most 3 T, which is at most 3 of them at a time, and a measured bandwidth could only say so again.
//
// More of them hold state that is read ahead under forward and backward. The same memory does more
// as pinned state, which is neither read nor written: auto leaves it to that.
constexpr int kMostStagingBuffers = 4;

}  // namespace

HostShare choose_staging(const Config& config, const TryHostShare& holds) {
  const int asked = config.staging_buffers;
  HostShare share;
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
  fits(most);
  return share;
}

}  // namespace strata::engine
