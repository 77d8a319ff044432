// What the host budget is used for beyond what a run needs at least: staging buffers, then state
// pinned in host memory instead of on nvme.
#pragma once

#include <cstdint>
#include <functional>

#include "strata/config.h"

namespace strata::engine {

struct HostShare {
  int staging_buffers = 1;
  int64_t pinned_until = 0;  // nvme's part of the state starts no earlier than at this grain
};

// Plans with a share; returns whether the host budget holds that.
using TryHostShare = std::function<bool(const HostShare&)>;

// As many staging buffers as are asked for; with auto as many as help, and fit.
HostShare choose_staging(const Config& config, const TryHostShare& holds);

// With the buffers of `share`, the most grains of the state on nvme that the host budget holds,
// every kind's alike. The shard space has `grains`.
HostShare choose_pinned(HostShare share, int64_t grains, const TryHostShare& holds);

}  // namespace strata::engine
