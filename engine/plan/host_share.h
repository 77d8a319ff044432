// What the host budget is used for beyond what a run needs at least: transfers ahead of their use,
// staging buffers, then state pinned in host memory instead of on nvme.
#pragma once

#include <cstdint>
#include <functional>

#include "strata/config.h"

namespace strata::engine {

struct HostShare {
  int transfers_ahead = 1;  // of parameters, gradients and activations each, with room at a time
  int staging_buffers = 1;
  int64_t pinned_until = 0;  // nvme's part of the state starts no earlier than at this grain
};

// Plans with a share; returns whether the host budget holds that.
using TryHostShare = std::function<bool(const HostShare&)>;

// As many transfers as help, and fit.
HostShare choose_transfers(const TryHostShare& holds);

// Beside that, as many staging buffers as are asked for; with auto as many as help, and fit.
HostShare choose_staging(const Config& config, HostShare share, const TryHostShare& holds);

// With the buffers of `share`, the most grains of the state on nvme that the host budget holds,
// every kind's alike. The shard space has `grains`.
HostShare choose_pinned(HostShare share, int64_t grains, const TryHostShare& holds);

}  // namespace strata::engine
