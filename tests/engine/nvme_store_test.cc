// The store goes while its disk is still at work, as when an exception unwinds: its files stay open
// until the last transfer is done.
#include "engine/runtime/nvme_store.h"

#include <gtest/gtest.h>

#include <atomic>
#include <exception>
#include <memory>
#include <vector>

#include "kernels/device/host_device.h"
#include "kernels/ops/layer_ops.h"
#include "tests/engine/resumed_run.h"

namespace strata::engine {
namespace {

struct Tally {
  std::atomic<int> done = 0, failed = 0;
};

void count(void* tally, std::exception_ptr failure) noexcept {
  auto& counts = *static_cast<Tally*>(tally);
  ++counts.done;
  if (failure != nullptr) ++counts.failed;
}

TEST(NvmeStoreTest, FilesStayOpenUntilTheLastTransferIsDone) {
  constexpr int kReads = 8;
  const testing_support::TemporaryDirectory directory;
  Config config = testing_support::recoverable_config(directory.path());
  config.recovery = RecoveryChoice::automatic;  // no run's directory: scratch
  const Model model = models::gpt2(testing_support::tiny_gpt2());
  const World world;
  NullTrafficSink traffic;
  NullLogSink log;
  const auto device = make_host_device({}, traffic);
  const auto queue = device->create_queue({"compute", 1});
  const auto layer_ops = ops::make_host_layer_ops(*queue, 1);
  constexpr uint64_t kPlenty = uint64_t{1} << 32;
  const Plan plan = make_plan({.model = model,
                               .config = config,
                               .world = world,
                               .micro_batch = {2, 16},
                               .ops = *layer_ops,
                               .machine = {kPlenty, kPlenty, kPlenty, 0}});
  offload::TierManager tiers(*device, plan.summary);
  // Each block of a read is late, and there are more of them than are under way at a time.
  Disturbance disturbance;
  disturbance.io = io::FaultPlan{.delay_permille = 1000, .max_delay_us = 2000};
  const MemoryBlock memory = device->allocate_pinned(plan.state.slot_layout().file_bytes());
  Tally tally;
  {
    NvmeStore store(plan, config, {disturbance, traffic, log}, tiers);
    const io::StripedFile& file = store.slots()->file();
    for (int i = 0; i < kReads; ++i) {
      offload::IoCommand read;
      read.file = &file;
      read.data = memory.data();
      read.bytes = memory.bytes();
      store.pump().submit(read, {&count, &tally});
    }
    EXPECT_LT(tally.done, kReads) << "nothing is left under way";
  }
  EXPECT_EQ(tally.done, kReads);
  EXPECT_EQ(tally.failed, 0);
}

}  // namespace
}  // namespace strata::engine
