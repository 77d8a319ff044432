// The decorator's faults, over a backend that never fails.
#include <fcntl.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <vector>

#include "tests/io/io_test_support.h"

namespace strata::io {
namespace {

using testing::Each;
using testing::ElementsAreArray;
using testing::Not;

// Moves everything at once: reads give 0x11 bytes.
class PerfectBackend final : public IoBackend {
 public:
  static constexpr uint32_t kDepth = 16;

  void submit(const Transfer& transfer) override {
    if (transfer.op == Op::read) std::fill_n(transfer.data, transfer.bytes, std::byte{0x11});
    done_.push_back({transfer.cookie, static_cast<int32_t>(transfer.bytes)});
  }
  size_t reap(std::span<Completion> out, std::chrono::milliseconds) override {
    const size_t count = std::min(out.size(), done_.size());
    const auto end = done_.begin() + static_cast<std::ptrdiff_t>(count);
    std::copy(done_.begin(), end, out.begin());
    done_.erase(done_.begin(), end);
    return count;
  }
  void wake() override {}
  uint32_t max_in_flight() const override { return kDepth; }
  std::string name() const override { return "perfect"; }

 private:
  std::vector<Completion> done_;
};

class FaultBackendTest : public testing::TestWithParam<uint64_t> {
 protected:
  static constexpr uint32_t kBytes = 8192;
  static constexpr int kTransfers = 2000;

  FaultBackendTest()
      : file_(BlockFile::create_scratch(dir_.path(), kBytes, {.direct = DirectMode::off}, log_)) {}

  static std::unique_ptr<IoBackend> faulty(const FaultPlan& plan) {
    return make_fault_backend(std::make_unique<PerfectBackend>(), plan);
  }
  // One transfer after the other.
  std::vector<int32_t> results(IoBackend& backend, int transfers = kTransfers) {
    std::vector<int32_t> all;
    for (int i = 0; i < transfers; ++i) {
      backend.submit({.op = Op::read, .fd = file_.fd(), .data = data_.data(), .bytes = kBytes});
      Completion completion;
      while (backend.reap({&completion, 1}, kNoLimit) == 0) {
      }
      all.push_back(completion.result);
    }
    return all;
  }

  TemporaryDirectory dir_;
  NullLogSink log_;
  BlockFile file_;
  AlignedBuffer data_{kBytes};
};

TEST_P(FaultBackendTest, EmptyPlanChangesNothing) {
  EXPECT_THAT(results(*faulty({.seed = GetParam()})), Each(static_cast<int32_t>(kBytes)));
}

TEST_P(FaultBackendTest, SameSeedGivesTheSameFaults) {
  FaultPlan plan = {.seed = GetParam(),
                    .short_transfer_permille = 300,
                    .error_permille = 50,
                    .again_permille = 100};
  const std::vector<int32_t> first = results(*faulty(plan));
  EXPECT_THAT(results(*faulty(plan)), ElementsAreArray(first));
  plan.seed += 1000;
  EXPECT_THAT(results(*faulty(plan)), Not(ElementsAreArray(first)));
}

TEST_P(FaultBackendTest, FaultsComeAsOftenAsPlanned) {
  const FaultPlan plan = {.seed = GetParam(),
                          .short_transfer_permille = 500,
                          .error_permille = 100,
                          .again_permille = 100};
  const std::vector<int32_t> all = results(*faulty(plan));
  const auto share = [&](auto matches) {
    return static_cast<double>(std::ranges::count_if(all, matches)) / kTransfers;
  };
  // Six standard deviations of 2000 draws are below 0.07.
  EXPECT_NEAR(share([](int32_t r) { return r == -EIO; }), 0.1, 0.05);
  EXPECT_NEAR(share([](int32_t r) { return r == -EAGAIN || r == -EINTR; }), 0.09, 0.05);
  EXPECT_NEAR(share([](int32_t r) { return r > 0 && r < int32_t{kBytes}; }), 0.405, 0.07);
  EXPECT_GT(share([](int32_t r) { return r == -EAGAIN; }), 0);
  EXPECT_GT(share([](int32_t r) { return r == -EINTR; }), 0);
}

TEST_P(FaultBackendTest, ShortReadPoisonsWhatItDoesNotReport) {
  const auto backend = faulty({.seed = GetParam(), .short_transfer_permille = 1000});
  for (int i = 0; i < 50; ++i) {
    const auto result = static_cast<uint32_t>(results(*backend, 1)[0]);
    ASSERT_GE(result, 1u);
    ASSERT_LT(result, kBytes);
    const auto bytes = data_.span();
    EXPECT_THAT(bytes.first(result), Each(std::byte{0x11}));
    EXPECT_THAT(bytes.subspan(result), Each(std::byte{0xA5}));
  }
}

TEST_P(FaultBackendTest, PlannedFailureHitsExactlyItsTransfer) {
  const std::vector<int32_t> all = results(*faulty({.seed = GetParam(), .fail_at = 7}), 20);
  for (size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i], i == 7 ? -EIO : int32_t{kBytes});
  const FaultPlan full_disk = {.seed = GetParam(), .fail_at = 0, .fail_errno = ENOSPC};
  EXPECT_THAT(results(*faulty(full_disk), 2), testing::ElementsAre(-ENOSPC, int32_t{kBytes}));
}

TEST_P(FaultBackendTest, TalliesWhatItDid) {
  FaultTally tally;
  const std::vector<int32_t> all = results(*faulty({.seed = GetParam(),
                                                    .short_transfer_permille = 200,
                                                    .error_permille = 50,
                                                    .again_permille = 100,
                                                    .delay_permille = 10,
                                                    .max_delay_us = 1,
                                                    .tally = &tally}));
  EXPECT_EQ(tally.errors, std::ranges::count(all, -EIO));
  EXPECT_EQ(tally.again, std::ranges::count(all, -EAGAIN) + std::ranges::count(all, -EINTR));
  EXPECT_EQ(tally.short_transfers,
            std::ranges::count_if(all, [](int32_t r) { return r > 0 && r < int32_t{kBytes}; }));
  EXPECT_GT(tally.delays, 0);
}

TEST_P(FaultBackendTest, DelayedAndReorderedCompletionsAllArriveOnce) {
  const auto backend = faulty({.seed = GetParam(), .delay_permille = 500, .reorder = true});
  std::vector<uint64_t> cookies;
  for (uint64_t i = 0; i < PerfectBackend::kDepth; ++i) {
    backend->submit({.op = Op::flush, .cookie = i});
  }
  EXPECT_THROW(backend->submit({.op = Op::flush}), std::logic_error);
  while (cookies.size() < PerfectBackend::kDepth) {
    std::array<Completion, 3> batch;
    const size_t count = backend->reap(batch, kNoLimit);
    for (size_t i = 0; i < count; ++i) cookies.push_back(batch[i].cookie);
  }
  EXPECT_FALSE(std::ranges::is_sorted(cookies));
  std::ranges::sort(cookies);
  for (uint64_t i = 0; i < cookies.size(); ++i) EXPECT_EQ(cookies[i], i);
}

TEST(FaultBackend, OneTransferOfAKindHangsUntilItIsLetGo) {
  std::atomic<bool> until = false;
  const auto backend =
      make_fault_backend(std::make_unique<PerfectBackend>(), {.hang = Hang{Op::read, 1, &until}});
  std::array<std::byte, 3> bytes = {};
  for (uint64_t i = 0; i < bytes.size(); ++i) {
    backend->submit({.op = Op::write, .data = &bytes[i], .bytes = 1, .cookie = 10 + i});
    backend->submit({.op = Op::read, .data = &bytes[i], .bytes = 1, .cookie = i});
  }
  const auto reap = [&] {
    std::array<Completion, 8> out;
    std::vector<uint64_t> cookies;
    const size_t count = backend->reap(out, std::chrono::milliseconds(0));
    for (size_t i = 0; i < count; ++i) cookies.push_back(out[i].cookie);
    return cookies;
  };
  EXPECT_THAT(reap(), testing::UnorderedElementsAre(10, 0, 11, 12, 2));
  EXPECT_THAT(reap(), testing::IsEmpty());
  EXPECT_EQ(bytes[1], std::byte{0});  // it has not begun
  until = true;
  EXPECT_THAT(reap(), testing::ElementsAre(1));
  EXPECT_EQ(bytes[1], std::byte{0x11});
}

TEST(FaultBackend, NamesWhatItWraps) {
  EXPECT_EQ(make_fault_backend(std::make_unique<PerfectBackend>(), {})->name(), "faulty(perfect)");
}

INSTANTIATE_TEST_SUITE_P(Seeds, FaultBackendTest, testing::Values(1, 2, 3));

}  // namespace
}  // namespace strata::io
