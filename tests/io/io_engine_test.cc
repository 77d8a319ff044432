// The engine over a backend whose completions the test writes itself.
#include "io/io_engine.h"

#include <gmock/gmock.h>

#include <deque>
#include <functional>

#include "tests/io/io_test_support.h"

namespace strata::io {
namespace {

using testing::HasSubstr;
using testing::SizeIs;

// Remembers transfers; hands out the completions it was given.
class ScriptedBackend final : public IoBackend {
 public:
  explicit ScriptedBackend(uint32_t depth) : depth_(depth) {}

  void submit(const Transfer& transfer) override {
    transfers.push_back(transfer);
    if (answer) complete(transfers.size() - 1, answer(transfer));
  }
  size_t reap(std::span<Completion> out, std::chrono::milliseconds timeout) override {
    size_t count = 0;
    while (count < out.size() && !ready_.empty()) {
      out[count++] = ready_.front();
      ready_.pop_front();
    }
    if (count == 0 && timeout.count() < 0) throw std::logic_error("would wait for ever");
    return count;
  }
  void wake() override { ++wakes; }
  uint32_t max_in_flight() const override { return depth_; }
  std::string name() const override { return "scripted"; }

  void complete(size_t transfer, int64_t result) {
    ready_.push_back({transfers[transfer].cookie, static_cast<int32_t>(result)});
  }
  void complete_fully(size_t transfer) { complete(transfer, transfers[transfer].bytes); }

  std::vector<Transfer> transfers;  // every one submitted, in order
  std::function<int64_t(const Transfer&)> answer;
  int wakes = 0;

 private:
  const uint32_t depth_;
  std::deque<Completion> ready_;
};

class IoEngineTest : public testing::Test {
 protected:
  static constexpr uint32_t kDepth = 4;
  static constexpr uint32_t kBlock = 16384;
  static constexpr uint64_t kFileBytes = 16 * kBlock;

  IoEngineTest()
      : file_(BlockFile::create_scratch(dir_.path(), kFileBytes, {}, log_)),
        bytes_(kFileBytes),
        unit_(std::max(file_.offset_alignment(), file_.memory_alignment())) {
    auto backend = std::make_unique<ScriptedBackend>(kDepth);
    backend_ = backend.get();
    engine_ = std::make_unique<IoEngine>(std::move(backend), IoEngine::Options{kBlock}, traffic_);
  }

  IoRequest request(Op op, uint64_t offset, uint64_t bytes) {
    return request_for(op, file_, offset, bytes_.span().subspan(offset, bytes));
  }
  // Whether the engine hands back exactly this request without waiting.
  bool handed_back(const IoRequest& request) {
    std::array<IoRequest*, 2> done = {};
    return engine_->reap(done, std::chrono::milliseconds(0)) == 1 && done[0] == &request;
  }

  TemporaryDirectory dir_;
  NullLogSink log_;
  RecordingTraffic traffic_;
  BlockFile file_;
  AlignedBuffer bytes_;
  const uint32_t unit_;
  ScriptedBackend* backend_ = nullptr;
  std::unique_ptr<IoEngine> engine_;
};

TEST_F(IoEngineTest, CutsRequestsIntoBlocksAndKeepsTheDepthFull) {
  IoRequest large = request(Op::read, kBlock, 5 * kBlock);
  IoRequest small = request(Op::write, 8 * kBlock, kBlock / 2);
  engine_->submit(large);
  engine_->submit(small);
  ASSERT_THAT(backend_->transfers, SizeIs(kDepth));
  backend_->complete_fully(2);
  backend_->complete_fully(0);
  EXPECT_FALSE(handed_back(large));
  ASSERT_THAT(backend_->transfers, SizeIs(6));
  for (uint32_t i = 0; i < 5; ++i) {
    EXPECT_EQ(backend_->transfers[i].op, Op::read);
    EXPECT_EQ(backend_->transfers[i].offset, (1 + i) * kBlock);
    EXPECT_EQ(backend_->transfers[i].data, large.data + i * kBlock);
    EXPECT_EQ(backend_->transfers[i].bytes, kBlock);
  }
  EXPECT_EQ(backend_->transfers[5].op, Op::write);
  EXPECT_EQ(backend_->transfers[5].bytes, kBlock / 2);

  backend_->complete_fully(5);
  EXPECT_TRUE(handed_back(small));
  for (size_t i : {4, 1, 3}) backend_->complete_fully(i);
  EXPECT_TRUE(handed_back(large));
  EXPECT_TRUE(large.ok());
  EXPECT_EQ(engine_->in_flight(), 0u);
}

TEST_F(IoEngineTest, ShortTransferResumesAtAnAlignedOffset) {
  IoRequest read = request(Op::read, kBlock, kBlock);
  engine_->submit(read);
  backend_->complete(0, 3 * unit_ + unit_ / 2);
  EXPECT_FALSE(handed_back(read));
  ASSERT_THAT(backend_->transfers, SizeIs(2));
  const uint32_t kept = (3 * unit_ + unit_ / 2) / unit_ * unit_;
  EXPECT_EQ(backend_->transfers[1].offset, kBlock + kept);
  EXPECT_EQ(backend_->transfers[1].data, read.data + kept);
  EXPECT_EQ(backend_->transfers[1].bytes, kBlock - kept);
  backend_->complete_fully(1);
  EXPECT_TRUE(handed_back(read));
  EXPECT_EQ(read.done_bytes, kBlock);
}

TEST_F(IoEngineTest, PassingTroubleIsRetriedUntilItPasses) {
  int calls = 0;
  backend_->answer = [&](const Transfer& transfer) -> int64_t {
    ++calls;
    return calls < 6 ? (calls % 2 == 0 ? -EAGAIN : -EINTR) : transfer.bytes;
  };
  IoRequest write = request(Op::write, 0, kBlock);
  engine_->submit(write);
  reap_all(*engine_);
  EXPECT_TRUE(write.ok());
  EXPECT_EQ(calls, 6);
}

TEST_F(IoEngineTest, TroubleThatDoesNotPassIsAnErrorNotAHang) {
  backend_->answer = [](const Transfer&) { return -EAGAIN; };
  IoRequest write = request(Op::write, 0, kBlock);
  engine_->submit(write);
  reap_all(*engine_);
  EXPECT_EQ(write.error, EAGAIN);
  EXPECT_LT(backend_->transfers.size(), 100u);
}

TEST_F(IoEngineTest, ReadThatNeverCompletesABlockIsTheEndOfTheFile) {
  if (unit_ == 1) GTEST_SKIP() << "every byte counts on a buffered file";
  backend_->answer = [](const Transfer&) { return 1; };
  IoRequest read = request(Op::read, 0, kBlock);
  engine_->submit(read);
  reap_all(*engine_);
  EXPECT_FALSE(read.ok());
  EXPECT_EQ(read.error, 0);
  EXPECT_THAT(io_error_of(read), HasSubstr("unexpected end of file"));
}

TEST_F(IoEngineTest, ErrorIsHandedBackOnlyOnceNoTransferTouchesTheBuffer) {
  IoRequest read = request(Op::read, 0, 8 * kBlock);
  engine_->submit(read);
  backend_->complete(1, -EIO);
  EXPECT_FALSE(handed_back(read));
  backend_->complete_fully(0);
  backend_->complete_fully(3);
  EXPECT_FALSE(handed_back(read));
  backend_->complete(2, -ENOSPC);
  EXPECT_TRUE(handed_back(read));
  EXPECT_THAT(backend_->transfers, SizeIs(kDepth)) << "blocks were started after the failure";
  EXPECT_EQ(read.error, EIO);
  EXPECT_EQ(read.error_offset, kBlock);
  EXPECT_THAT(traffic_.records(), SizeIs(0));
}

TEST_F(IoEngineTest, FailedRequestDoesNotHoldUpTheNext) {
  IoRequest first = request(Op::read, 0, 8 * kBlock);
  IoRequest second = request(Op::read, 8 * kBlock, kBlock);
  engine_->submit(first);
  engine_->submit(second);
  for (size_t i = 0; i < kDepth; ++i) backend_->complete(i, -EIO);
  EXPECT_TRUE(handed_back(first));
  ASSERT_THAT(backend_->transfers, SizeIs(kDepth + 1));
  EXPECT_EQ(backend_->transfers.back().offset, 8 * kBlock);
  backend_->complete_fully(kDepth);
  EXPECT_TRUE(handed_back(second));
  EXPECT_TRUE(second.ok());
}

TEST_F(IoEngineTest, FailureCancelsRetriesThatWait) {
  IoRequest read = request(Op::read, 0, 2 * kBlock);
  engine_->submit(read);
  backend_->complete(0, -EAGAIN);
  EXPECT_FALSE(handed_back(read));
  ASSERT_THAT(backend_->transfers, SizeIs(3));
  backend_->complete(2, -EAGAIN);  // from now on this block waits before it is tried again
  backend_->complete(1, -EIO);
  EXPECT_TRUE(handed_back(read));
  EXPECT_EQ(read.error, EIO);
  EXPECT_THAT(backend_->transfers, SizeIs(3));
}

TEST_F(IoEngineTest, ZeroBytesReadAreAnUnexpectedEndOfFile) {
  IoRequest read = request(Op::read, 0, 2 * kBlock);
  engine_->submit(read);
  backend_->complete_fully(0);
  backend_->complete(1, 0);
  EXPECT_TRUE(handed_back(read));
  EXPECT_FALSE(read.ok());
  EXPECT_EQ(read.error, 0);
  EXPECT_EQ(read.error_offset, kBlock);
  EXPECT_THAT(io_error_of(read), HasSubstr("unexpected end of file"));
}

TEST_F(IoEngineTest, CountsThatCannotBeAreErrors) {
  IoRequest write = request(Op::write, 0, kBlock);
  engine_->submit(write);
  backend_->complete(0, 0);
  EXPECT_TRUE(handed_back(write));
  EXPECT_EQ(write.error, EIO);

  IoRequest read = request(Op::read, 0, kBlock);
  engine_->submit(read);
  backend_->complete(1, kBlock + 1);
  EXPECT_TRUE(handed_back(read));
  EXPECT_EQ(read.error, EIO);
  EXPECT_EQ(read.done_bytes, 0u);
}

TEST_F(IoEngineTest, FailureNamesPathOffsetAndErrno) {
  IoRequest write = request(Op::write, 2 * kBlock, kBlock);
  engine_->submit(write);
  backend_->complete(0, -EIO);
  EXPECT_TRUE(handed_back(write));
  try {
    write.throw_if_failed();
    FAIL() << "a failed request did not throw";
  } catch (const IoError& error) {
    EXPECT_EQ(error.path, file_.path());
    EXPECT_EQ(error.offset, 2 * kBlock);
    EXPECT_EQ(error.error_number, EIO);
    EXPECT_THAT(error.what(), HasSubstr(file_.path()));
    EXPECT_THAT(error.what(), HasSubstr("offset 32768"));
    EXPECT_THAT(error.what(), HasSubstr("errno 5"));
  }
}

TEST_F(IoEngineTest, RequestThatFailedMayBeSubmittedAgain) {
  IoRequest write = request(Op::write, 0, kBlock);
  engine_->submit(write);
  backend_->complete(0, -EIO);
  EXPECT_TRUE(handed_back(write));
  engine_->submit(write);
  backend_->complete_fully(1);
  EXPECT_TRUE(handed_back(write));
  EXPECT_TRUE(write.ok());
}

TEST_F(IoEngineTest, BadRangesAreRefusedBeforeAnythingMoves) {
  IoRequest behind = request(Op::read, 0, kBlock);
  behind.offset = kFileBytes - kBlock + unit_;
  IoRequest wrapped = request(Op::write, 0, kBlock);
  wrapped.offset = UINT64_MAX - UINT64_MAX % unit_;
  IoRequest flush = request(Op::flush, 0, kBlock);
  std::vector<IoRequest> bad = {behind, wrapped, flush};
  if (unit_ > 1) {
    bad.push_back(request(Op::read, 1, kBlock));
    bad.push_back(request(Op::read, 0, kBlock - 1));
  }
  if (file_.memory_alignment() > 1) {
    bad.push_back(request(Op::write, 0, kBlock));
    bad.back().data += 1;
  }
  for (IoRequest& bad_request : bad) {
    EXPECT_THROW(engine_->submit(bad_request), IoError);
  }
  EXPECT_THAT(backend_->transfers, SizeIs(0));
  EXPECT_EQ(engine_->in_flight(), 0u);
}

TEST_F(IoEngineTest, NothingToMoveIsDoneAtOnce) {
  IoRequest empty = request(Op::read, kFileBytes, 0);
  engine_->submit(empty);
  EXPECT_TRUE(handed_back(empty));
  EXPECT_TRUE(empty.ok());
  EXPECT_THAT(backend_->transfers, SizeIs(0));
}

TEST_F(IoEngineTest, WakeIsNotSpentOnACompletionThatFinishesNothing) {
  IoRequest read = request(Op::read, 0, 2 * kBlock);
  engine_->submit(read);
  engine_->wake();
  backend_->complete_fully(0);
  std::array<IoRequest*, 1> done = {};
  EXPECT_EQ(engine_->reap(done, kNoLimit), 0u);  // the backend throws if asked to wait again
  EXPECT_EQ(backend_->wakes, 1);
  backend_->complete_fully(1);
  EXPECT_TRUE(handed_back(read));
}

TEST_F(IoEngineTest, BlocksAreRoundedDownToTheAlignment) {
  auto backend = std::make_unique<ScriptedBackend>(kDepth);
  ScriptedBackend& scripted = *backend;
  scripted.answer = [](const Transfer& transfer) { return transfer.bytes; };
  IoEngine engine(std::move(backend), {.block_bytes = 5 * unit_ + unit_ / 2}, traffic_);
  IoRequest read = request(Op::read, 0, 8 * unit_);
  engine.submit(read);
  reap_all(engine);
  ASSERT_THAT(scripted.transfers, SizeIs(2));
  EXPECT_EQ(scripted.transfers[0].bytes, 5 * unit_);
  EXPECT_EQ(scripted.transfers[1].bytes, 3 * unit_);
}

TEST_F(IoEngineTest, ImpossibleBlocksAreRefused) {
  for (const uint32_t block_bytes : {0u, kMaxTransferBytes + 1}) {
    EXPECT_THROW(IoEngine(std::make_unique<ScriptedBackend>(kDepth), {block_bytes}, traffic_),
                 ConfigError);
  }
}

TEST_F(IoEngineTest, TrafficIsRecordedOnceARequestWithItsTag) {
  backend_->answer = [](const Transfer& transfer) { return transfer.bytes; };
  IoRequest write = request(Op::write, 0, 3 * kBlock);
  write.tag = {.kind = StateKind::master, .index = 7, .label = "update"};
  IoRequest flush = request(Op::flush, 0, 0);
  engine_->submit(write);
  engine_->submit(flush);
  reap_all(*engine_);
  const std::vector<TrafficRecord> records = traffic_.records();
  ASSERT_THAT(records, SizeIs(2));
  EXPECT_EQ(records[0].activity, Activity::nvme_write);
  EXPECT_EQ(records[0].bytes, 3 * kBlock);
  EXPECT_EQ(records[0].tag.kind, StateKind::master);
  EXPECT_EQ(records[0].tag.index, 7);
  EXPECT_STREQ(records[0].tag.label, "update");
  EXPECT_STREQ(records[0].lane, "io");
  EXPECT_LE(records[0].begin_ns, records[0].end_ns);
  EXPECT_EQ(records[1].activity, Activity::nvme_flush);
  EXPECT_EQ(records[1].bytes, 0u);
}

}  // namespace
}  // namespace strata::io
