// In place of profiler_nvtx.cc where the build has no CUDA, or the toolkit no NVTX.
#include "kernels/device/profiler_range.h"

namespace strata {

void push_profiler_range(const TrafficTag&) noexcept {}
void pop_profiler_range() noexcept {}

}  // namespace strata
