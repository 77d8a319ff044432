// One suite over every backend, plain, registered and faulty: what the engine promises does not
// depend on what is below it.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <numeric>
#include <thread>

#include "tests/io/io_test_support.h"

namespace strata::io {
namespace {

using testing::AnyOf;
using testing::HasSubstr;
using testing::SizeIs;

constexpr uint32_t kDepth = 8;
constexpr uint64_t kFileBytes = 4 << 20;

struct Case {
  BackendChoice choice = BackendChoice::threads;
  uint64_t fault_seed = 0;  // 0: no faults
  bool registered = false;
};

std::string case_name(const testing::TestParamInfo<Case>& info) {
  std::string name = info.param.choice == BackendChoice::threads ? "Threads" : "IoUring";
  if (info.param.registered) name += "Registered";
  if (info.param.fault_seed != 0) name += "Faulty" + std::to_string(info.param.fault_seed);
  return name;
}

// Everything that a caller must not notice.
FaultPlan survivable_faults(uint64_t seed) {
  return {.seed = seed,
          .short_transfer_permille = 250,
          .again_permille = 100,
          .delay_permille = 100,
          .max_delay_us = 300,
          .reorder = true};
}

class IoConformance : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (make_plain_backend(GetParam().choice, kDepth) == nullptr) {
      GTEST_SKIP() << "io_uring is forbidden here";
    }
  }

  std::unique_ptr<IoBackend> plain_backend() const {
    std::unique_ptr<IoBackend> plain = make_plain_backend(GetParam().choice, kDepth);
    if (GetParam().registered) plain->attach(resources_);
    return plain;
  }
  std::unique_ptr<IoBackend> backend() const {
    if (GetParam().fault_seed == 0) return plain_backend();
    return make_fault_backend(plain_backend(), survivable_faults(GetParam().fault_seed));
  }
  std::unique_ptr<IoEngine> engine(uint32_t block_bytes) {
    return std::make_unique<IoEngine>(backend(), IoEngine::Options{block_bytes}, traffic_);
  }
  std::unique_ptr<IoEngine> engine_with(const FaultPlan& plan, uint32_t block_bytes) {
    return std::make_unique<IoEngine>(make_fault_backend(plain_backend(), plan),
                                      IoEngine::Options{block_bytes}, traffic_);
  }
  // Zeroed, from the memory whose first part is registered where that is tested.
  AlignedBuffer buffer(size_t bytes) {
    const size_t begin = memory_used_;
    memory_used_ += (bytes + 4095) / 4096 * 4096;
    return AlignedBuffer(memory_.span().subspan(begin, bytes));
  }

  TemporaryDirectory dir_;
  NullLogSink log_;
  RecordingTraffic traffic_;
  BlockFile file_ = BlockFile::create_scratch(dir_.path(), kFileBytes, {}, log_);
  AlignedBuffer memory_{16 << 20};
  size_t memory_used_ = 0;
  // Two buffers that touch, in the wrong order: transfers lie in one of them, across both, and
  // outside. Together they stay below the usual limit of locked memory, 8 MiB.
  const IoResources resources_ = {
      .buffers = {memory_.span().subspan(5 << 18, 19 << 18), memory_.span().first(5 << 18)},
      .files = {file_.fd()}};
};

TEST_P(IoConformance, BytesComeBackIdenticalAtOddBlockSizes) {
  for (const uint32_t block_bytes : {4096u, 3 * 4096u, 7 * 4096u + 1, 1u << 20}) {
    SCOPED_TRACE(block_bytes);
    const auto io = engine(block_bytes);
    const size_t bytes = std::min<size_t>(kFileBytes - 8192, block_bytes / 4096 * 4096 * 37 + 4096);
    const AlignedBuffer written = buffer(bytes);
    const AlignedBuffer read = buffer(bytes);
    written.randomize(block_bytes);
    run(*io, request_for(Op::write, file_, 8192, written.span()));
    run(*io, request_for(Op::read, file_, 8192, read.span()));
    EXPECT_TRUE(same_bytes(written.span(), read.span()));
  }
}

TEST_P(IoConformance, BufferedFilesTakeAnyOffsetAndLength) {
  const BlockFile buffered =
      BlockFile::create_scratch(dir_.path(), 100'003, {.direct = DirectMode::off}, log_);
  const auto io = engine(4099);
  const AlignedBuffer written = buffer(100'001);
  const AlignedBuffer read = buffer(100'001);
  written.randomize(1);
  run(*io, request_for(Op::write, buffered, 1, written.span()));
  run(*io, request_for(Op::read, buffered, 1, read.span()));
  EXPECT_TRUE(same_bytes(written.span(), read.span()));
}

TEST_P(IoConformance, ManyRequestsAreEachHandedBackOnceWithTheirOwnBytes) {
  constexpr size_t kRequests = 256;
  constexpr size_t kPiece = kFileBytes / kRequests;
  const auto io = engine(kPiece / 2);
  const AlignedBuffer written = buffer(kFileBytes);
  const AlignedBuffer read = buffer(kFileBytes);
  written.randomize(2);
  std::vector<size_t> order(kRequests);
  std::iota(order.begin(), order.end(), size_t{0});
  std::shuffle(order.begin(), order.end(), std::mt19937_64(3));
  for (const auto& [op, bytes] : {std::pair(Op::write, &written), std::pair(Op::read, &read)}) {
    std::vector<IoRequest> requests;
    for (size_t i : order) {
      requests.push_back(
          request_for(op, file_, i * kPiece, bytes->span().subspan(i * kPiece, kPiece)));
    }
    for (IoRequest& request : requests) io->submit(request);
    EXPECT_EQ(io->in_flight(), kRequests);
    std::vector<IoRequest*> done = reap_all(*io);
    for (const IoRequest* request : done) EXPECT_TRUE(request->ok()) << io_error_of(*request);
    std::ranges::sort(done);
    EXPECT_EQ(std::ranges::unique(done).begin(), done.end());
    EXPECT_THAT(done, SizeIs(kRequests));
  }
  EXPECT_TRUE(same_bytes(written.span(), read.span()));
}

TEST_P(IoConformance, TrafficIsTheBytesAskedForWhateverItTook) {
  const auto io = engine(65536);
  const AlignedBuffer bytes = buffer(1 << 20);
  run(*io, request_for(Op::write, file_, 0, bytes.span()));
  run(*io, request_for(Op::read, file_, 0, bytes.span().first(4096 * 3)));
  run(*io, request_for(Op::flush, file_, 0, {}));
  EXPECT_EQ(traffic_.bytes(Activity::nvme_write), bytes.size());
  EXPECT_EQ(traffic_.bytes(Activity::nvme_read), 4096u * 3);
  EXPECT_THAT(traffic_.records(), SizeIs(3));
}

TEST_P(IoConformance, FileCutBehindOurBackIsAnUnexpectedEnd) {
  const auto io = engine(16384);
  const AlignedBuffer bytes = buffer(65536);
  for (const off_t cut : {32768, 32768 + 100}) {
    SCOPED_TRACE(cut);
    ASSERT_EQ(::ftruncate(file_.fd(), cut), 0);
    IoRequest read = request_for(Op::read, file_, 0, bytes.span());
    io->submit(read);
    reap_all(*io);
    EXPECT_FALSE(read.ok());
    EXPECT_EQ(read.error, 0);
    EXPECT_THAT(io_error_of(read), HasSubstr("unexpected end of file"));
    EXPECT_THAT(io_error_of(read), HasSubstr(file_.path()));
  }
}

TEST_P(IoConformance, FailureNamesThePlaceAndLeavesTheEngineUsable) {
  const auto io = engine_with({.fail_at = 2}, 16384);
  const AlignedBuffer bytes = buffer(16384 * 6);
  IoRequest write = request_for(Op::write, file_, 4096, bytes.span());
  io->submit(write);
  reap_all(*io);
  EXPECT_EQ(write.error, EIO);
  EXPECT_EQ(write.error_offset, 4096u + 2 * 16384);
  EXPECT_EQ(write.transfers_in_flight, 0u);
  run(*io, request_for(Op::write, file_, 4096, bytes.span()));
}

TEST_P(IoConformance, EveryRequestIsRightOrAnErrorNeverSilence) {
  FaultPlan plan = survivable_faults(GetParam().fault_seed + 10);
  plan.error_permille = 40;
  const auto io = engine_with(plan, 8192);
  constexpr size_t kPiece = 32768;
  constexpr size_t kRequests = 64;
  const AlignedBuffer truth = buffer(kRequests * kPiece);
  const AlignedBuffer read = buffer(kRequests * kPiece);
  truth.randomize(4);
  run(*engine(1 << 20), request_for(Op::write, file_, 0, truth.span()));
  std::vector<IoRequest> requests;
  for (size_t i = 0; i < kRequests; ++i) {
    requests.push_back(
        request_for(Op::read, file_, i * kPiece, read.span().subspan(i * kPiece, kPiece)));
  }
  for (IoRequest& request : requests) io->submit(request);
  EXPECT_THAT(reap_all(*io), SizeIs(kRequests));
  size_t failed = 0;
  for (size_t i = 0; i < kRequests; ++i) {
    failed += requests[i].ok() ? 0 : 1;
    const auto expected = truth.span().subspan(i * kPiece, kPiece);
    const auto got = read.span().subspan(i * kPiece, kPiece);
    EXPECT_TRUE(requests[i].error == EIO || same_bytes(expected, got)) << "request " << i;
    EXPECT_EQ(requests[i].ok(), requests[i].error == 0);
  }
  EXPECT_GT(failed, 0u);
  EXPECT_LT(failed, kRequests);
}

TEST_P(IoConformance, WakeFromAnotherThreadEndsAWait) {
  const auto io = engine(65536);
  std::array<IoRequest*, 1> done;
  for (int i = 0; i < 100; ++i) {
    std::thread waker([&] { io->wake(); });
    EXPECT_EQ(io->reap(done, kNoLimit), 0u);
    waker.join();
  }
}

TEST_P(IoConformance, WaitWithNothingUnderWayEndsInTime) {
  const auto io = engine(65536);
  std::array<IoRequest*, 1> done;
  EXPECT_EQ(io->reap(done, std::chrono::milliseconds(0)), 0u);
  EXPECT_EQ(io->reap(done, std::chrono::milliseconds(2)), 0u);
}

// The pump in small: others leave requests in a mailbox and wake the owner, who was not the one to
// build the engine.
TEST_P(IoConformance, OwnerThreadServesOtherThreads) {
  constexpr size_t kClients = 3;
  constexpr size_t kEach = 20;
  constexpr size_t kPiece = 32768;
  const auto io = engine(16384);
  std::mutex mutex;
  std::vector<IoRequest*> mailbox;
  const AlignedBuffer bytes = buffer(kClients * kEach * kPiece);
  bytes.randomize(5);
  std::vector<IoRequest> requests;
  for (size_t i = 0; i < kClients * kEach; ++i) {
    requests.push_back(
        request_for(Op::write, file_, i * kPiece, bytes.span().subspan(i * kPiece, kPiece)));
  }
  std::thread owner([&] {
    size_t served = 0;
    std::array<IoRequest*, 4> done;
    while (served < requests.size()) {
      std::vector<IoRequest*> mail;
      {
        const std::lock_guard lock(mutex);
        mail.swap(mailbox);
      }
      for (IoRequest* request : mail) io->submit(*request);
      served += io->reap(done, kNoLimit);
    }
  });
  std::vector<std::thread> clients;
  for (size_t client = 0; client < kClients; ++client) {
    clients.emplace_back([&, client] {
      for (size_t i = 0; i < kEach; ++i) {
        {
          const std::lock_guard lock(mutex);
          mailbox.push_back(&requests[client * kEach + i]);
        }
        io->wake();
      }
    });
  }
  for (std::thread& client : clients) client.join();
  owner.join();

  const AlignedBuffer read = buffer(bytes.size());
  run(*engine(1 << 20), request_for(Op::read, file_, 0, read.span()));
  EXPECT_TRUE(same_bytes(bytes.span(), read.span()));
}

TEST_P(IoConformance, DestructionWaitsForTransfersUnderWay) {
  constexpr size_t kPiece = kFileBytes / kDepth;
  const AlignedBuffer bytes = buffer(kFileBytes);
  bytes.randomize(6);
  run(*engine(1 << 20), request_for(Op::write, file_, 0, bytes.span()));
  std::vector<IoRequest> reads;
  for (size_t i = 0; i < kDepth; ++i) {
    reads.push_back(
        request_for(Op::read, file_, i * kPiece, bytes.span().subspan(i * kPiece, kPiece)));
  }
  {
    const auto io = engine(kPiece);
    std::array<IoRequest*, 1> done;
    for (IoRequest& read : reads) io->submit(read);
    io->reap(done, std::chrono::milliseconds(0));
  }
  const AlignedBuffer untouched = buffer(kFileBytes);
  bytes.fill(std::byte{0});
  const AlignedBuffer meanwhile = buffer(kFileBytes);
  run(*engine(1 << 20), request_for(Op::read, file_, 0, meanwhile.span()));
  EXPECT_TRUE(same_bytes(bytes.span(), untouched.span()));
}

TEST_P(IoConformance, DepthIsALimit) {
  const auto raw = backend();
  EXPECT_EQ(raw->max_in_flight(), kDepth);
  for (uint32_t i = 0; i < kDepth; ++i) raw->submit({.op = Op::flush, .fd = file_.fd()});
  EXPECT_THROW(raw->submit({.op = Op::flush, .fd = file_.fd()}), std::logic_error);
}

INSTANTIATE_TEST_SUITE_P(
    Backends, IoConformance,
    testing::Values(Case{BackendChoice::io_uring, 0}, Case{BackendChoice::io_uring, 1},
                    Case{BackendChoice::io_uring, 2}, Case{BackendChoice::io_uring, 3},
                    Case{BackendChoice::io_uring, 0, true}, Case{BackendChoice::io_uring, 1, true},
                    Case{BackendChoice::io_uring, 2, true}, Case{BackendChoice::io_uring, 3, true},
                    Case{BackendChoice::threads, 0}, Case{BackendChoice::threads, 1},
                    Case{BackendChoice::threads, 2}, Case{BackendChoice::threads, 3}),
    case_name);

// Without an engine or a decorator in between.
class RawBackend : public testing::TestWithParam<BackendChoice> {};

TEST_P(RawBackend, ReportsWhatTheKernelSaid) {
  const auto raw = make_plain_backend(GetParam(), kDepth);
  if (raw == nullptr) GTEST_SKIP() << "io_uring is forbidden here";
  const TemporaryDirectory dir;
  NullLogSink log;
  const BlockFile file = BlockFile::create_scratch(dir.path(), kFileBytes, {}, log);
  const AlignedBuffer bytes(4096);
  raw->submit({.op = Op::read, .fd = -1, .data = bytes.data(), .bytes = 4096, .cookie = 11});
  raw->submit({.op = Op::flush, .fd = file.fd(), .cookie = 12});
  raw->submit({.op = Op::read,
               .fd = file.fd(),
               .offset = kFileBytes,
               .data = bytes.data(),
               .bytes = 4096,
               .cookie = 13});
  for (size_t reaped = 0; reaped < 3;) {
    Completion completion;
    if (raw->reap({&completion, 1}, kNoLimit) == 0) continue;
    ++reaped;
    EXPECT_THAT(completion.cookie, AnyOf(11, 12, 13));
    EXPECT_EQ(completion.result, completion.cookie == 11 ? -EBADF : 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, RawBackend,
                         testing::Values(BackendChoice::io_uring, BackendChoice::threads));

}  // namespace
}  // namespace strata::io
