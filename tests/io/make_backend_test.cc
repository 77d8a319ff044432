#include <gmock/gmock.h>
#include <sys/syscall.h>

#include "tests/io/forbidden_syscall.h"
#include "tests/io/io_test_support.h"

namespace strata::io {
namespace {

using testing::HasSubstr;
using testing::SizeIs;

constexpr ForbiddenSyscall kNoIoUring = {.number = __NR_io_uring_setup, .error_number = EPERM};

TEST(MakeBackend, AutomaticFallsBackToThreadsWithOneLineThatSaysWhy) {
  RecordingLog log;
  std::unique_ptr<IoBackend> backend;
  if (!run_forbidding(kNoIoUring,
                      [&] { backend = make_backend(BackendChoice::automatic, 8, 2, log); })) {
    GTEST_SKIP() << "no seccomp filters here";
  }
  EXPECT_EQ(backend->name(), "threads");
  EXPECT_EQ(backend->max_in_flight(), 8u);
  ASSERT_THAT(log.warnings(), SizeIs(1));
  EXPECT_THAT(log.warnings()[0], HasSubstr("io_uring"));
  EXPECT_THAT(log.warnings()[0], HasSubstr("Operation not permitted"));
  EXPECT_THAT(log.warnings()[0], HasSubstr("2 threads"));
}

TEST(MakeBackend, IoUringThatWasAskedForIsNotReplaced) {
  RecordingLog log;
  int error_number = 0;
  const bool forbidden = run_forbidding(kNoIoUring, [&] {
    try {
      make_backend(BackendChoice::io_uring, 8, 2, log);
    } catch (const IoError& error) {
      error_number = error.error_number;
    }
  });
  if (!forbidden) GTEST_SKIP() << "no seccomp filters here";
  EXPECT_EQ(error_number, EPERM);
  EXPECT_THAT(log.warnings(), SizeIs(0));
}

TEST(MakeBackend, AutomaticIsIoUringWhereItIsAllowed) {
  if (make_plain_backend(BackendChoice::io_uring, 8) == nullptr) {
    GTEST_SKIP() << "io_uring is forbidden here";
  }
  RecordingLog log;
  EXPECT_EQ(make_backend(BackendChoice::automatic, 8, 2, log)->name(), "io_uring");
  EXPECT_THAT(log.warnings(), SizeIs(0));
}

TEST(MakeBackend, ThreadsAreThreadsWithoutAWord) {
  RecordingLog log;
  EXPECT_EQ(make_backend(BackendChoice::threads, 8, 2, log)->name(), "threads");
  EXPECT_THAT(log.warnings(), SizeIs(0));
}

TEST(MakeBackend, ImpossibleNumbersAreRefused) {
  NullLogSink log;
  EXPECT_THROW(make_backend(BackendChoice::threads, 0, 2, log), ConfigError);
  EXPECT_THROW(make_backend(BackendChoice::threads, 8, 0, log), ConfigError);
  EXPECT_THROW(make_backend(BackendChoice::io_uring, 0, 2, log), ConfigError);
  EXPECT_THROW(make_backend(BackendChoice::io_uring, 1 << 20, 2, log), ConfigError);
}

}  // namespace
}  // namespace strata::io
