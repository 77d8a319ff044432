// Registered memory and files: that they are used, and what happens where they are refused.
#include <gmock/gmock.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tests/io/forbidden_syscall.h"
#include "tests/io/io_test_support.h"

namespace strata::io {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr size_t kBytes = 256 << 10;

class UringRegistrationTest : public testing::Test {
 protected:
  void SetUp() override {
    if (make_plain_backend(BackendChoice::io_uring, 8) == nullptr) {
      GTEST_SKIP() << "io_uring is forbidden here";
    }
    truth_.randomize(1);
    run(*engine({}), request_for(Op::write, file_, 0, truth_.span()));
  }

  std::unique_ptr<IoEngine> engine(const IoResources& resources) {
    auto io = std::make_unique<IoEngine>(make_uring_backend(8), IoEngine::Options{65536}, traffic_);
    io->attach(resources);
    return io;
  }
  // What is left of the resources does its work.
  void expect_reads_the_truth(IoEngine& io) const {
    memory_.fill(std::byte{0});
    run(io, request_for(Op::read, file_, 0, memory_.span()));
    EXPECT_TRUE(same_bytes(memory_.span(), truth_.span()));
    run(io, request_for(Op::write, file_, 0, memory_.span()));
    run(io, request_for(Op::flush, file_, 0, {}));
  }

  TemporaryDirectory dir_;
  NullLogSink log_;
  NullTrafficSink traffic_;
  BlockFile file_ = BlockFile::create_scratch(dir_.path(), kBytes, {}, log_);
  const AlignedBuffer truth_{kBytes};
  const AlignedBuffer memory_{kBytes};
};

TEST_F(UringRegistrationTest, NameSaysWhatIsInForce) {
  EXPECT_EQ(engine({})->name(), "io_uring");
  EXPECT_EQ(engine({.files = {file_.fd()}})->name(), "io_uring, registered files");
  EXPECT_EQ(engine({.buffers = {memory_.span()}})->name(), "io_uring, registered buffers");
  const auto io = engine({.buffers = {memory_.span()}, .files = {file_.fd()}});
  EXPECT_EQ(io->name(), "io_uring, registered buffers and files");
  expect_reads_the_truth(*io);
}

// Other pages at the same address would be read into by anybody who goes by the address.
TEST_F(UringRegistrationTest, TransfersGoToThePagesThatWereRegistered) {
  const auto map = [](void* at) {
    return ::mmap(at, kBytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | (at == nullptr ? 0 : MAP_FIXED), -1, 0);
  };
  void* const mapped = map(nullptr);
  ASSERT_NE(mapped, MAP_FAILED);
  const std::span<std::byte> bytes(static_cast<std::byte*>(mapped), kBytes);
  const AlignedBuffer zeros(kBytes);
  const auto plain = engine({});
  const auto registered = engine({.buffers = {bytes}});
  ASSERT_EQ(map(mapped), mapped);
  run(*registered, request_for(Op::read, file_, 0, bytes));
  EXPECT_TRUE(same_bytes(bytes, zeros.span()));
  run(*plain, request_for(Op::read, file_, 0, bytes));
  EXPECT_TRUE(same_bytes(bytes, truth_.span()));
  ::munmap(mapped, kBytes);
}

// Likewise another file behind the same descriptor.
TEST_F(UringRegistrationTest, TransfersGoToTheFilesThatWereRegistered) {
  const BlockFile other = BlockFile::create_scratch(dir_.path(), kBytes, {}, log_);
  const auto plain = engine({});
  const auto registered = engine({.files = {file_.fd()}});
  const AlignedBuffer zeros(kBytes);
  ASSERT_EQ(::dup2(other.fd(), file_.fd()), file_.fd());
  run(*registered, request_for(Op::read, file_, 0, memory_.span()));
  EXPECT_TRUE(same_bytes(memory_.span(), truth_.span()));
  run(*plain, request_for(Op::read, file_, 0, memory_.span()));
  EXPECT_TRUE(same_bytes(memory_.span(), zeros.span()));
}

TEST_F(UringRegistrationTest, WhatCannotBeRegisteredIsDoneWithoutAndSaidWhy) {
  // Nothing is mapped at the first page, and no descriptor has this number.
  const std::span nowhere(reinterpret_cast<std::byte*>(4096), 4096);
  const int no_file = 1 << 20;

  const auto files_only = engine({.buffers = {memory_.span(), nowhere}, .files = {file_.fd()}});
  EXPECT_THAT(files_only->name(), HasSubstr("registered files, no registered buffers (Bad addr"));
  expect_reads_the_truth(*files_only);

  const auto plain = engine({.buffers = {nowhere}, .files = {file_.fd(), no_file}});
  EXPECT_THAT(plain->name(), HasSubstr("no registered buffers (Bad address)"));
  EXPECT_THAT(plain->name(), HasSubstr("no registered files (Bad file descriptor)"));
  expect_reads_the_truth(*plain);
}

TEST_F(UringRegistrationTest, LimitOfLockedMemoryLeavesTheFilesRegistered) {
  const ForbiddenSyscall no_buffers = {.number = __NR_io_uring_register,
                                       .argument = 1,
                                       .argument_value = IORING_REGISTER_BUFFERS,
                                       .error_number = ENOMEM};
  const bool ran = run_forbidding(no_buffers, [&] {
    const auto io = engine({.buffers = {memory_.span()}, .files = {file_.fd()}});
    EXPECT_THAT(io->name(), HasSubstr("registered files"));
    EXPECT_THAT(io->name(), HasSubstr("ulimit -l"));
    expect_reads_the_truth(*io);
  });
  if (!ran) GTEST_SKIP() << "no seccomp filters here";
}

// The kernel takes a gibibyte a buffer. The same few pages are mapped again and again, so that the
// test needs little memory.
TEST_F(UringRegistrationTest, MoreThanAGibibyteIsRegisteredInPieces) {
  constexpr size_t kPageRun = 16 << 20;
  constexpr size_t kRuns = 66;
  const int memory = ::memfd_create("pages", MFD_CLOEXEC);
  ASSERT_EQ(::ftruncate(memory, kPageRun), 0);
  void* const mapped =
      ::mmap(nullptr, kRuns * kPageRun, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(mapped, MAP_FAILED);
  const std::span<std::byte> bytes(static_cast<std::byte*>(mapped), kRuns * kPageRun);
  for (size_t i = 0; i < kRuns; ++i) {
    ASSERT_NE(::mmap(bytes.data() + i * kPageRun, kPageRun, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_FIXED, memory, 0),
              MAP_FAILED);
  }
  {
    const auto io = engine({.buffers = {bytes}});
    if (io->name().find("ulimit") == std::string::npos) {
      EXPECT_THAT(io->name(), Not(HasSubstr("no registered")));
    }
    const size_t boundary = size_t{1} << 30;
    for (const size_t begin :
         {size_t{0}, boundary - kBytes / 2 - 4096, boundary, bytes.size() - kBytes}) {
      const std::span<std::byte> part = bytes.subspan(begin, kBytes);
      std::fill(part.begin(), part.end(), std::byte{0});
      run(*io, request_for(Op::read, file_, 0, part));
      EXPECT_TRUE(same_bytes(part, truth_.span())) << begin;
    }
  }
  ::munmap(mapped, bytes.size());
  ::close(memory);
}

}  // namespace
}  // namespace strata::io
