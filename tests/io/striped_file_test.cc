// Files in several directories against a plain run of bytes, through the engine, disturbed or not.
#include "io/striped_file.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "io/bandwidth_probe.h"
#include "tests/io/io_test_support.h"

namespace strata::io {
namespace {

using testing::HasSubstr;

class StripedFileTest : public testing::Test {
 protected:
  // Subdirectories of one disk, which is all that a test can count on.
  std::vector<std::string> directories(size_t count) const {
    std::vector<std::string> paths;
    for (size_t i = 0; i < count; ++i) {
      paths.push_back(dir_.path() + "/disk" + std::to_string(i));
      std::filesystem::create_directory(paths.back());
    }
    return paths;
  }
  StripedFile create(const Stripes& stripes, uint64_t bytes, DirectMode direct) {
    return StripedFile::create_scratch(stripes, bytes, {direct}, log_);
  }
  std::unique_ptr<IoEngine> engine(uint32_t block_bytes, const FaultPlan& faults = {}) {
    auto backend = make_plain_backend(BackendChoice::automatic, 8);
    return std::make_unique<IoEngine>(make_fault_backend(std::move(backend), faults),
                                      IoEngine::Options{block_bytes}, traffic_);
  }

  TemporaryDirectory dir_;
  NullLogSink log_;
  RecordingTraffic traffic_;
};

class StripedFileModel : public StripedFileTest, public testing::WithParamInterface<uint64_t> {};

// Writes and reads at random places are those of one run of bytes, and each file holds what the
// pattern says.
TEST_P(StripedFileModel, BytesAreThoseOfAPlainFile) {
  std::mt19937_64 random(GetParam());
  const bool direct = GetParam() % 2 == 0;
  const uint64_t unit = direct ? 4096 : 1;
  Stripes stripes = {directories(1 + random() % 4), {}, unit * (1 + random() % 7)};
  for (size_t i = 0; i < stripes.directories.size(); ++i) {
    stripes.weights.push_back(static_cast<uint32_t>(1 + random() % 5));
  }
  const uint64_t units = 150 + random() % 100;
  const StripedFile file =
      create(stripes, units * unit, direct ? DirectMode::automatic : DirectMode::off);
  const FaultPlan faults = {.seed = GetParam(),
                            .short_transfer_permille = GetParam() % 3 == 0 ? 200 : 0,
                            .again_permille = GetParam() % 3 == 0 ? 50 : 0,
                            .reorder = true};
  const auto io = engine(static_cast<uint32_t>(unit * (1 + random() % 9)), faults);
  const AlignedBuffer model(units * unit);
  const AlignedBuffer read(units * unit);
  if (GetParam() % 4 < 2) {
    IoResources resources = {.buffers = {model.span(), read.span()}};
    for (const BlockFile& part : file.files()) resources.files.push_back(part.fd());
    io->attach(resources);
  }

  for (int round = 0; round < 20; ++round) {
    const uint64_t begin = random() % units;
    const uint64_t count = 1 + random() % (units - begin);
    const auto part = model.span().subspan(begin * unit, count * unit);
    for (std::byte& byte : part) byte = static_cast<std::byte>(random());
    run(*io, request_for(Op::write, file, begin * unit, part));
    const uint64_t from = random() % units;
    const auto seen = read.span().subspan(from * unit);
    run(*io, request_for(Op::read, file, from * unit, seen));
    ASSERT_TRUE(same_bytes(seen, model.span().subspan(from * unit))) << "round " << round;
  }
  run(*io, request_for(Op::flush, file, 0, {}));

  std::vector<AlignedBuffer> contents;
  for (const BlockFile& part : file.files()) {
    contents.emplace_back(part.bytes());
    run(*io, request_for(Op::read, part, 0, contents.back().span()));
  }
  for (uint64_t at = 0; at < model.size(); ++at) {
    const FileSpace::Run where = file.locate(at);
    const AlignedBuffer& held = contents[static_cast<size_t>(where.file - file.files().data())];
    ASSERT_EQ(held.span()[where.offset], model.span()[at]) << "byte " << at;
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, StripedFileModel, testing::Range<uint64_t>(1, 49));

TEST_F(StripedFileTest, OnePathIsAPlainFile) {
  const StripedFile file = create({directories(1), {3}, 4096}, 10 * 4096, DirectMode::automatic);
  ASSERT_EQ(file.files().size(), 1u);
  const FileSpace::Run run = file.locate(4096);
  EXPECT_EQ(run.offset, 4096u);
  EXPECT_EQ(run.bytes, 9u * 4096);
  EXPECT_EQ(file.path(), file.files().front().path());
}

TEST_F(StripedFileTest, EveryByteIsReservedOnce) {
  const StripedFile file = create({directories(3), {1, 2, 5}, 8192}, 41 * 4096, DirectMode::off);
  uint64_t sum = 0;
  for (const BlockFile& part : file.files()) sum += part.bytes();
  EXPECT_EQ(sum, file.bytes());
}

TEST_F(StripedFileTest, FailureNamesTheFileAndThePlaceInIt) {
  const Stripes stripes = {directories(2), {1, 1}, 16384};
  const StripedFile file = create(stripes, 8 * 16384, DirectMode::off);
  const AlignedBuffer bytes(8 * 16384);
  const auto io = engine(16384);
  ASSERT_EQ(::ftruncate(file.files()[1].fd(), 16384), 0);
  IoRequest read = request_for(Op::read, file, 0, bytes.span());
  io->submit(read);
  reap_all(*io);
  EXPECT_FALSE(read.ok());
  EXPECT_EQ(read.error_file, &file.files()[1]);
  EXPECT_GE(read.error_offset, 16384u);
  EXPECT_THAT(io_error_of(read), HasSubstr("unexpected end of file"));
  EXPECT_THAT(io_error_of(read), HasSubstr(stripes.directories[1] + "/"));
}

TEST_F(StripedFileTest, FlushReachesEveryFile) {
  const StripedFile file = create({directories(3), {1, 1, 1}, 4096}, 4096 * 3, DirectMode::off);
  for (int64_t failing = 0; failing < 3; ++failing) {
    const auto io = engine(4096, {.fail_at = failing});
    IoRequest flush = request_for(Op::flush, file, 0, {});
    io->submit(flush);
    reap_all(*io);
    EXPECT_EQ(flush.error, EIO);
    EXPECT_EQ(flush.error_file, &file.files()[static_cast<size_t>(failing)]);
  }
  const auto io = engine(4096, {.fail_at = 3});
  run(*io, request_for(Op::flush, file, 0, {}));
}

TEST_F(StripedFileTest, WhatCannotBeMadeIsRefusedByName) {
  const auto paths = directories(2);
  EXPECT_THROW(create({paths, {1}, 4096}, 4096, DirectMode::off), ConfigError);
  EXPECT_THROW(create({paths, {1, 0}, 4096}, 4096, DirectMode::off), ConfigError);
  EXPECT_THROW(create({{}, {}, 4096}, 4096, DirectMode::off), ConfigError);
  const uint64_t too_much = uint64_t{1} << 60;
  for (const auto& [stripes, bytes] :
       {std::pair(Stripes{{paths[0], "/no/such"}, {1, 1}, 4096}, uint64_t{65536}),
        std::pair(Stripes{{"/no/such", paths[0]}, {1, 1}, 4096}, uint64_t{65536}),
        std::pair(Stripes{paths, {1, 1}, 4096}, too_much)}) {
    try {
      create(stripes, bytes, DirectMode::off);
      FAIL() << "created " << bytes;
    } catch (const IoError& error) {
      EXPECT_THAT(error.what(), HasSubstr(bytes == too_much ? paths[0] : "/no/such"));
    }
  }
}

TEST_F(StripedFileTest, StripesThatADiskCannotMoveAreRefused) {
  const auto paths = directories(2);
  if (!create({paths, {1, 1}, 4096}, 4096, DirectMode::automatic).direct()) {
    GTEST_SKIP() << "no direct I/O in " << dir_.path();
  }
  EXPECT_THROW(create({paths, {1, 1}, 100}, 4096, DirectMode::automatic), ConfigError);
}

// The disk is shared with whoever else works on it, hence the slack.
TEST_F(StripedFileTest, PathsOfOneDiskShareItsRoom) {
  const auto paths = directories(2);
  const auto free = static_cast<double>(free_bytes(paths[0]));
  for (const std::vector<uint32_t>& weights : {{}, std::vector<uint32_t>{1, 3}}) {
    EXPECT_NEAR(static_cast<double>(striped_free_bytes(paths, weights)), free, 0.2 * free);
  }
  EXPECT_THROW(striped_free_bytes(paths, std::vector<uint32_t>{1}), ConfigError);
}

TEST_F(StripedFileTest, ProbeMeasuresAndLeavesNothing) {
  const auto io = engine(1 << 20);
  EXPECT_GT(probe_bandwidth(*io, dir_.path(), 3 << 20, {}), 0);
  EXPECT_TRUE(std::filesystem::is_empty(dir_.path()));
  EXPECT_EQ(io->in_flight(), 0u);
}

TEST_F(StripedFileTest, ProbeOfABadDiskIsAnErrorThatNamesIt) {
  for (const int64_t failing : {0, 4, 10}) {
    const auto io = engine(1 << 20, {.fail_at = failing});
    try {
      probe_bandwidth(*io, dir_.path(), 3 << 20, {});
      FAIL() << "transfer " << failing;
    } catch (const IoError& error) {
      EXPECT_EQ(error.error_number, EIO);
      EXPECT_THAT(error.what(), HasSubstr(dir_.path()));
    }
    EXPECT_EQ(io->in_flight(), 0u);
  }
}

}  // namespace
}  // namespace strata::io
