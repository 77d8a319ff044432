// Every block of memory and disk of a plan, under its name.
#pragma once

#include <cstdint>

#include "engine/plan/host_share.h"
#include "engine/plan/planner.h"

namespace strata::engine {

// Sizes the buffers that gradients pass through, and fills in the summary's reservations and what
// each tier needs. Layout, state, staging, activations and programs are as they will run.
void reserve(const PlanInput& input, const HostShare& host, Plan& plan);

// Rounded up: pieces of a reservation start at a page.
inline uint64_t whole_pages(uint64_t bytes) {
  constexpr uint64_t kPageBytes = 4096;
  return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}

int64_t widest_channels(const Model& model);
// Parameters gathered ahead of their use at most; "auto" as Hugging Face's Trainer fills it in.
int64_t prefetch_numel(const PlanInput& input);

}  // namespace strata::engine
