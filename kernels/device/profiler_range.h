// Stretches of a thread's work under the trace's labels, for a profiler that looks on: Nsight
// Systems shows them on the thread, and what is launched on a GPU meanwhile on the GPU's rows.
//
// They are NVTX's, and cost next to nothing where nobody listens; a stub takes their place where
// CUDA or NVTX was absent at build time (profiler_absent.cc).
#pragma once

#include "strata/traffic.h"

namespace strata {

// Ranges of a thread lie within each other: "backward 3", or "update" where the tag has no index.
void push_profiler_range(const TrafficTag& tag) noexcept;
void pop_profiler_range() noexcept;

class ProfilerRange {
 public:
  explicit ProfilerRange(const TrafficTag& tag) noexcept { push_profiler_range(tag); }
  ~ProfilerRange() { pop_profiler_range(); }
  ProfilerRange(const ProfilerRange&) = delete;
  ProfilerRange& operator=(const ProfilerRange&) = delete;
};

}  // namespace strata
