#include "io/block_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <bit>
#include <csignal>

#include "tests/io/forbidden_syscall.h"
#include "tests/io/io_test_support.h"

namespace strata::io {
namespace {

using testing::HasSubstr;
using testing::SizeIs;

constexpr uint64_t kBytes = 1 << 20;
constexpr uint64_t kMoreThanAnyDisk = uint64_t{1} << 60;
constexpr const char* kMemoryFileSystem = "/dev/shm";

template <typename Action>
IoError io_error_from(const Action& action) {
  try {
    action();
  } catch (const IoError& error) {
    return error;
  }
  ADD_FAILURE() << "no IoError";
  return IoError("", "", 0, 0);
}

uint64_t reserved_bytes(const BlockFile& file) {
  struct stat info = {};
  EXPECT_EQ(::fstat(file.fd(), &info), 0);
  return static_cast<uint64_t>(info.st_blocks) * 512;
}

TEST(BlockFile, ScratchHasNoNameAndAllItsBlocks) {
  const TemporaryDirectory dir;
  NullLogSink log;
  const BlockFile file = BlockFile::create_scratch(dir.path(), kBytes, {}, log);
  EXPECT_TRUE(dir.empty());
  EXPECT_EQ(file.bytes(), kBytes);
  EXPECT_GE(reserved_bytes(file), kBytes);
  EXPECT_THAT(file.path(), HasSubstr(dir.path()));
}

TEST(BlockFile, AlignmentsArePowersOfTwoAndTheDescriptorSaysDirect) {
  const TemporaryDirectory dir;
  NullLogSink log;
  const BlockFile file = BlockFile::create_scratch(dir.path(), kBytes, {}, log);
  EXPECT_TRUE(std::has_single_bit(file.memory_alignment()));
  EXPECT_TRUE(std::has_single_bit(file.offset_alignment()));
  EXPECT_EQ(file.direct(), (::fcntl(file.fd(), F_GETFL) & O_DIRECT) != 0);
  if (!file.direct()) GTEST_SKIP() << dir.path() << " has no direct I/O";
  EXPECT_GT(file.offset_alignment(), 1u);
}

TEST(BlockFile, BufferedOnRequestIsSilentAndUnaligned) {
  const TemporaryDirectory dir;
  RecordingLog log;
  const BlockFile file =
      BlockFile::create_scratch(dir.path(), kBytes, {.direct = DirectMode::off}, log);
  EXPECT_FALSE(file.direct());
  EXPECT_EQ(file.memory_alignment(), 1u);
  EXPECT_EQ(file.offset_alignment(), 1u);
  EXPECT_THAT(log.warnings(), SizeIs(0));
}

TEST(BlockFile, MemoryFileSystemIsBufferedWithOneWarning) {
  if (!std::filesystem::is_directory(kMemoryFileSystem)) GTEST_SKIP() << "no /dev/shm";
  const TemporaryDirectory dir(kMemoryFileSystem);
  RecordingLog log;
  const BlockFile file = BlockFile::create_scratch(dir.path(), kBytes, {}, log);
  EXPECT_FALSE(file.direct());
  EXPECT_EQ(::fcntl(file.fd(), F_GETFL) & O_DIRECT, 0);
  ASSERT_THAT(log.warnings(), SizeIs(1));
  EXPECT_THAT(log.warnings()[0], HasSubstr(dir.path()));
}

TEST(BlockFile, RequiredDirectIsAnErrorWhereThereIsNone) {
  if (!std::filesystem::is_directory(kMemoryFileSystem)) GTEST_SKIP() << "no /dev/shm";
  const TemporaryDirectory dir(kMemoryFileSystem);
  RecordingLog log;
  const BlockFileOptions required = {.direct = DirectMode::required};
  const IoError error =
      io_error_from([&] { BlockFile::create(dir.file("state"), kBytes, required, log); });
  EXPECT_THAT(error.what(), HasSubstr(dir.file("state")));
  EXPECT_TRUE(dir.empty());
  EXPECT_THAT(log.warnings(), SizeIs(0));
}

TEST(BlockFile, RefusedDirectIoIsBufferedWithOneWarning) {
  const TemporaryDirectory dir;
  RecordingLog log;
  const ForbiddenSyscall no_o_direct = {
      .number = __NR_fcntl, .argument = 1, .argument_bits = F_SETFL, .error_number = EINVAL};
  const bool ran = run_forbidding(no_o_direct, [&] {
    const BlockFile file = BlockFile::create_scratch(dir.path(), kBytes, {}, log);
    EXPECT_FALSE(file.direct());
    EXPECT_EQ(file.offset_alignment(), 1u);
  });
  if (!ran) GTEST_SKIP() << "no seccomp filters here";
  EXPECT_THAT(log.warnings(), SizeIs(1));
}

TEST(BlockFile, AlignmentIsFourKibibytesWhereTheKernelDoesNotSay) {
  const TemporaryDirectory dir;
  NullLogSink log;
  const ForbiddenSyscall no_statx = {.number = __NR_statx, .error_number = ENOSYS};
  uint32_t alignment = 0;
  const bool ran = run_forbidding(no_statx, [&] {
    const BlockFile file = BlockFile::create_scratch(dir.path(), kBytes, {}, log);
    alignment = file.direct() ? file.offset_alignment() : 4096;
  });
  if (!ran) GTEST_SKIP() << "no seccomp filters here";
  EXPECT_EQ(alignment, 4096u);
}

TEST(BlockFile, ScratchNeedsNoAnonymousFiles) {
  const TemporaryDirectory dir;
  NullLogSink log;
  const ForbiddenSyscall no_tmpfile = {.number = __NR_openat,
                                       .argument = 2,
                                       .argument_bits = O_TMPFILE & ~O_DIRECTORY,
                                       .error_number = EOPNOTSUPP};
  const bool ran = run_forbidding(no_tmpfile, [&] {
    EXPECT_EQ(::open(dir.path().c_str(), O_TMPFILE | O_RDWR, 0600), -1);
    const BlockFile file = BlockFile::create_scratch(dir.path(), kBytes, {}, log);
    EXPECT_GE(reserved_bytes(file), kBytes);
  });
  if (!ran) GTEST_SKIP() << "no seccomp filters here";
  EXPECT_TRUE(dir.empty());
}

TEST(BlockFile, TooSmallADiskIsKnownAtStartWithNumbersAndDirectory) {
  const TemporaryDirectory dir;
  NullLogSink log;
  for (const bool scratch : {true, false}) {
    const IoError error = io_error_from([&] {
      if (scratch) BlockFile::create_scratch(dir.path(), kMoreThanAnyDisk, {}, log);
      BlockFile::create(dir.file("state"), kMoreThanAnyDisk, {}, log);
    });
    EXPECT_EQ(error.error_number, ENOSPC);
    EXPECT_EQ(error.path, dir.path());
    EXPECT_THAT(error.what(), HasSubstr("1.0 EiB"));
    EXPECT_THAT(error.what(), HasSubstr(dir.path()));
    EXPECT_THAT(error.what(), HasSubstr("free"));
    EXPECT_TRUE(dir.empty());
  }
}

// The largest file this process may write, for as long as it lives.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit = {bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_ = {};
  void (*handler_)(int);
};

TEST(BlockFile, RefusedReservationLeavesNoFileBehind) {
  const TemporaryDirectory dir;
  NullLogSink log;
  const IoError error = io_error_from([&] {
    const FileSizeLimit limit(kBytes / 2);
    BlockFile::create(dir.file("state"), kBytes, {}, log);
  });
  EXPECT_EQ(error.error_number, EFBIG);
  EXPECT_THAT(error.what(), HasSubstr("1.0 MiB"));
  EXPECT_TRUE(dir.empty());
}

TEST(BlockFile, CreateRefusesWhatExists) {
  const TemporaryDirectory dir;
  NullLogSink log;
  const std::string path = dir.file("state");
  { BlockFile::create(path, kBytes, {}, log); }
  EXPECT_EQ(io_error_from([&] { BlockFile::create(path, 4096, {}, log); }).error_number, EEXIST);
  EXPECT_EQ(std::filesystem::file_size(path), kBytes);
}

TEST(BlockFile, CreateDoesNotFollowADanglingLink) {
  const TemporaryDirectory dir;
  NullLogSink log;
  std::filesystem::create_symlink(dir.file("elsewhere"), dir.file("link"));
  const IoError error =
      io_error_from([&] { BlockFile::create(dir.file("link"), kBytes, {}, log); });
  EXPECT_EQ(error.error_number, EEXIST);
  EXPECT_FALSE(std::filesystem::exists(dir.file("elsewhere")));
  EXPECT_TRUE(std::filesystem::is_symlink(dir.file("link")));
}

TEST(BlockFile, OpenFindsWhatCreateMade) {
  const TemporaryDirectory dir;
  NullLogSink log;
  const std::string path = dir.file("state");
  bool direct = false;
  {
    const BlockFile created = BlockFile::create(path, kBytes, {}, log);
    direct = created.direct();
  }
  const BlockFile file = BlockFile::open(path, {}, log);
  EXPECT_EQ(file.bytes(), kBytes);
  EXPECT_EQ(file.path(), path);
  EXPECT_EQ(file.direct(), direct);
}

TEST(BlockFile, OpenRefusesWhatIsNoFile) {
  const TemporaryDirectory dir;
  NullLogSink log;
  EXPECT_EQ(io_error_from([&] { BlockFile::open(dir.file("none"), {}, log); }).error_number,
            ENOENT);
  EXPECT_EQ(io_error_from([&] { BlockFile::open(dir.path(), {}, log); }).error_number, EISDIR);
  ASSERT_EQ(::mkfifo(dir.file("fifo").c_str(), 0600), 0);
  const IoError error = io_error_from([&] { BlockFile::open(dir.file("fifo"), {}, log); });
  EXPECT_THAT(error.what(), HasSubstr("regular"));
}

TEST(BlockFile, MissingDirectoryIsNamed) {
  const TemporaryDirectory dir;
  NullLogSink log;
  const std::string missing = dir.file("missing");
  for (const IoError& error :
       {io_error_from([&] { BlockFile::create_scratch(missing, kBytes, {}, log); }),
        io_error_from([&] { BlockFile::create(missing + "/state", kBytes, {}, log); }),
        io_error_from([&] { free_bytes(missing); })}) {
    EXPECT_EQ(error.error_number, ENOENT);
    EXPECT_THAT(error.what(), HasSubstr(missing));
  }
}

TEST(BlockFile, MovesCloseEachDescriptorOnce) {
  const TemporaryDirectory dir;
  NullLogSink log;
  int first_fd = -1;
  {
    BlockFile first = BlockFile::create_scratch(dir.path(), 4096, {}, log);
    first_fd = first.fd();
    BlockFile moved = std::move(first);
    EXPECT_EQ(moved.fd(), first_fd);
    moved = BlockFile::create_scratch(dir.path(), 8192, {}, log);
    EXPECT_EQ(moved.bytes(), 8192u);
  }
  EXPECT_EQ(::fcntl(first_fd, F_GETFD), -1);
}

}  // namespace
}  // namespace strata::io
