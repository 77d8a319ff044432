#include "io/blocking_io.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cerrno>
#include <csignal>
#include <fstream>
#include <iterator>
#include <string>

#include "strata/error.h"
#include "tests/io/io_test_support.h"

namespace strata::io {
namespace {

class BlockingIo : public testing::Test {
 protected:
  BlockFile create(uint64_t bytes) {
    NullLogSink log;
    return BlockFile::create(path_, bytes, {.direct = DirectMode::off}, log);
  }

  const TemporaryDirectory dir_;
  const std::string path_ = dir_.file("file");
};

TEST_F(BlockingIo, ReadsWhatItWroteAtAnyOffset) {
  const BlockFile file = create(100);
  const std::string text = "some bytes";
  write_fully(file, 37, std::as_bytes(std::span(text)));
  flush(file);
  std::string read(text.size(), '\0');
  read_fully(file, 37, std::as_writable_bytes(std::span(read)));
  EXPECT_EQ(read, text);
}

TEST_F(BlockingIo, AFileThatEndsBeforeIsAnErrorThere) {
  const BlockFile file = create(100);
  std::string read(20, '\0');
  try {
    read_fully(file, 90, std::as_writable_bytes(std::span(read)));
    FAIL() << "read past the end";
  } catch (const IoError& error) {
    EXPECT_EQ(error.offset, 100u);
    EXPECT_EQ(error.error_number, 0);
    EXPECT_EQ(error.what(), "cannot read " + path_ + " at byte 100: the file ends there");
  }
}

TEST_F(BlockingIo, ANewFileTakesNoOthersPlace) {
  write_new_file(path_, "some text");
  std::ifstream file(path_);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(file), {}), "some text");
  EXPECT_THROW(write_new_file(path_, "other"), IoError);
}

// A limit on the size of files takes the place of a full disk: part of the bytes go, then none.
TEST_F(BlockingIo, AWriteThatIsCutShortIsTheErrorOfTheRest) {
  const BlockFile file = create(100);
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 4096;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string text(200, 'x');
  uint64_t offset = 0;
  int error_number = 0;
  try {
    write_fully(file, 4000, std::as_bytes(std::span(text)));
  } catch (const IoError& error) {
    offset = error.offset;
    error_number = error.error_number;
  }
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(offset, 4096u);
  EXPECT_EQ(error_number, EFBIG);
}

}  // namespace
}  // namespace strata::io
