// A profiler sees units, updates and transfers under the labels of the trace.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "kernels/device/compute_spans.h"
#include "tests/kernels/device/device_fixture.h"

namespace strata {
namespace {

// NVTX looks once, when the first range begins.
const bool kListens = setenv("NVTX_INJECTION64_PATH", STRATA_NVTX_LISTENER, 1) == 0;

std::string heard() {
  static void* const listener = dlopen(STRATA_NVTX_LISTENER, RTLD_NOW);
  static auto* const take = reinterpret_cast<const char* (*)()>(
      listener == nullptr ? nullptr : dlsym(listener, "take_heard"));
  return take == nullptr ? dlerror() : take();
}

using ProfilerRangeTest = DeviceTest;
INSTANTIATE_TEST_SUITE_P(Devices, ProfilerRangeTest, every_kind(), kind_name);

TEST_P(ProfilerRangeTest, WorkAndTransfersHaveTheTracesLabels) {
  ASSERT_TRUE(kListens);
  const auto queue = make_queue();
  const MemoryBlock device = device_->allocate(4096);
  const MemoryBlock host = device_->allocate_pinned(4096);
  ComputeSpans spans(*queue, sink_);
  heard();
  spans.begin({StateKind::activation, 3, "forward"});
  queue->fill_zero(device.data(), 4096);
  spans.end();
  queue->copy(host.data(), device.data(), 4096, CopyDirection::device_to_host,
              {StateKind::grad, 12, "landing"});
  queue->copy(device.data(), host.data(), 4096, CopyDirection::host_to_device,
              {StateKind::other, -1, "batch"});
  queue->synchronize();
  EXPECT_EQ(heard(), "forward 3, end, landing 12, end, batch, end");
  const auto computed = sink_.of(Activity::compute);
  ASSERT_EQ(computed.size(), 1u);
  EXPECT_STREQ(computed[0].tag.label, "forward");
  EXPECT_EQ(computed[0].tag.index, 3);
}

}  // namespace
}  // namespace strata
