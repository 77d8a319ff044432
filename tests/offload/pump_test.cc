#include "offload/pump.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "strata/error.h"
#include "tests/offload/offload_fixture.h"

namespace strata::offload {
namespace {

constexpr uint64_t kBlock = 128 << 10;

class PumpTest : public testing::Test {
 protected:
  io::BlockFile scratch(uint64_t bytes) {
    return io::BlockFile::create_scratch(directory_.path(), bytes, {}, log_);
  }
  TemporaryDirectory directory_;
  NullLogSink log_;
  Recorder recorder_{0};
  std::unique_ptr<Device> device_ = make_host_device({}, recorder_);
};

// Several threads, more requests than the pool has: each waits for room, none is lost.
TEST_F(PumpTest, ServesManyThreadsThroughASmallPool) {
  constexpr int kThreads = 4;
  constexpr int kRounds = 24;
  const io::FaultPlan faults{.seed = 3,
                             .short_transfer_permille = 100,
                             .error_permille = 0,
                             .again_permille = 50,
                             .delay_permille = 200,
                             .max_delay_us = 200,
                             .reorder = true,
                             .fail_at = -1};
  const auto pump = make_pump(recorder_, &faults, /*capacity=*/3);
  const io::BlockFile file = scratch(kThreads * kBlock);
  std::vector<std::thread> threads;
  std::atomic<int> mismatches = 0;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const MemoryBlock out = device_->allocate_pinned(kBlock);
      const MemoryBlock in = device_->allocate_pinned(kBlock);
      for (int round = 0; round < kRounds; ++round) {
        std::memset(out.data(), t * kRounds + round, kBlock);
        const auto offset = static_cast<uint64_t>(t) * kBlock;
        pump->submit({io::Op::write, &file, offset, out.data(), kBlock, {}}).wait();
        pump->submit({io::Op::read, &file, offset, in.data(), kBlock, {}}).wait();
        if (std::memcmp(out.data(), in.data(), kBlock) != 0) ++mismatches;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(mismatches, 0);
  const uint64_t bytes = kThreads * kRounds * kBlock;
  EXPECT_EQ(recorder_.link_bytes()[static_cast<size_t>(Activity::nvme_read)], bytes);
  EXPECT_EQ(recorder_.link_bytes()[static_cast<size_t>(Activity::nvme_write)], bytes);
}

TEST_F(PumpTest, FailureReachesTheTicketAndTheContinuation) {
  const io::FaultPlan faults{.error_permille = 1000};
  const auto pump = make_pump(recorder_, &faults);
  const io::BlockFile file = scratch(kBlock);
  const MemoryBlock buffer = device_->allocate_pinned(kBlock);
  const IoCommand command{io::Op::read, &file, 0, buffer.data(), kBlock, {}};
  EXPECT_THROW(pump->submit(command).wait(), IoError);

  std::atomic<int> called = 0;
  pump->submit(command, {[](void* context, std::exception_ptr failure) noexcept {
                           *static_cast<std::atomic<int>*>(context) = failure == nullptr ? 1 : 2;
                         },
                         &called});
  pump->quiesce();
  EXPECT_EQ(called, 2);
}

TEST_F(PumpTest, RefusesWhatTheFileDoesNotHold) {
  const auto pump = make_pump(recorder_);
  const io::BlockFile file = scratch(kBlock);
  const MemoryBlock buffer = device_->allocate_pinned(kBlock);
  EXPECT_THROW(pump->submit({io::Op::read, &file, kBlock, buffer.data(), kBlock, {}}).wait(),
               IoError);
  // and goes on serving
  pump->submit({io::Op::write, &file, 0, buffer.data(), kBlock, {}}).wait();
}

// A backend whose reap fails for good, as when the kernel takes the ring away.
class BrokenBackend final : public io::IoBackend {
 public:
  void submit(const io::Transfer&) override {}
  size_t reap(std::span<io::Completion>, std::chrono::milliseconds) override {
    throw IoError("the ring is gone", "", 0, EBADF);
  }
  void wake() override {}
  uint32_t max_in_flight() const override { return 4; }
  std::string name() const override { return "broken"; }
};

TEST_F(PumpTest, ABrokenEngineFailsEveryRequestAndTheProcessLives) {
  Pump pump(std::make_unique<io::IoEngine>(std::make_unique<BrokenBackend>(),
                                           io::IoEngine::Options{}, recorder_),
            8);
  const io::BlockFile file = scratch(kBlock);
  const MemoryBlock buffer = device_->allocate_pinned(kBlock);
  for (int i = 0; i < 3; ++i) {
    EXPECT_THROW(pump.submit({io::Op::read, &file, 0, buffer.data(), kBlock, {}}).wait(), IoError);
  }
  pump.quiesce();
  pump.attach({});
}

// Attached by one thread, registered and used by the pump's.
TEST_F(PumpTest, AttachedMemoryAndFilesServeTheSameBytes) {
  const io::BlockFile file = scratch(2 * kBlock);
  const MemoryBlock out = device_->allocate_pinned(2 * kBlock);
  const MemoryBlock in = device_->allocate_pinned(2 * kBlock);
  const auto pump = make_pump(recorder_);
  const std::string plain = pump->engine_name();
  pump->attach({.buffers = {{out.data(), out.bytes()}, {in.data(), kBlock}}, .files = {file.fd()}});
  EXPECT_EQ(pump->engine_name() == plain, plain == "threads");
  for (int i = 0; i < 8; ++i) {
    std::memset(out.data(), i + 1, out.bytes());
    pump->submit({io::Op::write, &file, 0, out.data(), out.bytes(), {}}).wait();
    pump->submit({io::Op::flush, &file, 0, nullptr, 0, {}}).wait();
    pump->submit({io::Op::read, &file, 0, in.data(), in.bytes(), {}}).wait();
    EXPECT_EQ(std::memcmp(out.data(), in.data(), out.bytes()), 0) << "round " << i;
  }
}

// Whoever waits is let go with the name of the oldest transfer. Its memory stays the disk's until
// quiesce(): what comes late still lands there.
TEST_F(PumpTest, AnAbandonedPumpFailsWhatIsUnderWayAndTakesItBackLater) {
  std::atomic<bool> answers = false;
  const io::FaultPlan faults{.hang = io::Hang{io::Op::read, 0, &answers}};
  const auto pump = make_pump(recorder_, &faults, /*capacity=*/2);
  const io::BlockFile file = scratch(2 * kBlock);
  const MemoryBlock out = device_->allocate_pinned(2 * kBlock);
  const MemoryBlock in = device_->allocate_pinned(kBlock);
  std::memset(out.data(), 5, out.bytes());
  pump->submit({io::Op::write, &file, 0, out.data(), out.bytes(), {}}).wait();
  EXPECT_EQ(pump->overdue(1, std::chrono::seconds(10)), nullptr);
  EXPECT_EQ(pump->standing().under_way, 0u);

  const IoCommand command{io::Op::read, &file,  kBlock,
                          in.data(),    kBlock, {StateKind::grad, 3, "test"}};
  std::atomic<int> failed = 0;
  const Continuation count = {[](void* context, std::exception_ptr failure) noexcept {
                                *static_cast<std::atomic<int>*>(context) += failure != nullptr;
                              },
                              &failed};
  Ticket ticket = pump->submit(command);
  const std::exception_ptr overdue = pump->overdue(2, std::chrono::seconds(10));
  ASSERT_NE(overdue, nullptr);
  EXPECT_EQ(pump->standing().under_way, 1u);
  pump->abandon(overdue);
  try {
    ticket.wait();
    FAIL() << "nothing was thrown";
  } catch (const IoError& error) {
    EXPECT_EQ(error.offset, kBlock);
    EXPECT_EQ(error.what(),
              "for 2 s the disk does not answer the read of "
              "65536 bytes at offset 131072 of " +
                  file.path() + " (test, grad 3)");
  }
  Ticket later = pump->submit(command);  // takes the pool's last room
  EXPECT_THROW(later.wait(), IoError);
  EXPECT_THROW(pump->submit(command), IoError);
  pump->submit(command, count);
  EXPECT_EQ(failed, 1);

  EXPECT_NE(in.data()[0], std::byte{5});
  answers = true;
  pump->quiesce();
  EXPECT_EQ(in.data()[0], std::byte{5});
}

TEST_F(PumpTest, DroppedTicketsStillFinish) {
  const auto pump = make_pump(recorder_, nullptr, /*capacity=*/2);
  const io::BlockFile file = scratch(16 * kBlock);
  const MemoryBlock buffer = device_->allocate_pinned(kBlock);
  for (uint64_t i = 0; i < 16; ++i) {
    pump->submit({io::Op::write, &file, i * kBlock, buffer.data(), kBlock, {}});
  }
  pump->quiesce();
  EXPECT_EQ(recorder_.link_bytes()[static_cast<size_t>(Activity::nvme_write)], 16 * kBlock);
}

}  // namespace
}  // namespace strata::offload
