// The disk does what its plan says, and nothing else.
#include "tests/io/simulated_disk.h"

#include <algorithm>
#include <bit>
#include <string>

#include "tests/io/io_test_support.h"

namespace strata::io {
namespace {

constexpr uint64_t kBlock = SimulatedDisk::kBlockBytes;
constexpr uint64_t kBytes = 8 * kBlock;

class SimulatedDiskTest : public testing::Test {
 protected:
  // A transfer of a part of `data_`, which lies in the file as in memory.
  int32_t transfer(SimulatedDisk& disk, Op op, uint64_t offset = 0, uint64_t bytes = kBytes) {
    const auto backend = disk.connect();
    backend->submit({.op = op,
                     .fd = file_.fd(),
                     .offset = offset,
                     .data = data_.data() + offset,
                     .bytes = static_cast<uint32_t>(op == Op::flush ? 0 : bytes)});
    Completion completion;
    while (backend->reap({&completion, 1}, kNoLimit) == 0) {
    }
    return completion.result;
  }
  int32_t write(SimulatedDisk& disk, char value, uint64_t offset = 0, uint64_t bytes = kBytes) {
    data_.fill(static_cast<std::byte>(value));
    return transfer(disk, Op::write, offset, bytes);
  }
  // What the file holds.
  std::string read(SimulatedDisk& disk) {
    EXPECT_EQ(transfer(disk, Op::read), static_cast<int32_t>(kBytes));
    return {reinterpret_cast<const char*>(data_.data()), kBytes};
  }
  static int bits_changed(const std::string& text, char from) {
    int bits = 0;
    for (const char byte : text) bits += std::popcount(static_cast<uint8_t>(byte ^ from));
    return bits;
  }

  TemporaryDirectory directory_;
  NullLogSink log_;
  BlockFile file_ = BlockFile::create(directory_.file("file"), kBytes, {}, log_);
  AlignedBuffer data_{kBytes};
};

TEST_F(SimulatedDiskTest, HoldsWhatWasWrittenForEveryBackend) {
  SimulatedDisk disk(1);
  EXPECT_EQ(read(disk), std::string(kBytes, '\0'));
  EXPECT_EQ(write(disk, 'a'), static_cast<int32_t>(kBytes));
  EXPECT_EQ(write(disk, 'b', kBlock, kBlock), static_cast<int32_t>(kBlock));
  EXPECT_EQ(transfer(disk, Op::flush), 0);
  const std::string text = read(disk);
  EXPECT_EQ(std::ranges::count(text, 'b'), kBlock);
  EXPECT_EQ(text[kBlock], 'b');
  EXPECT_EQ(transfer(disk, Op::read, kBytes - kBlock, 2 * kBlock), static_cast<int32_t>(kBlock));
}

TEST_F(SimulatedDiskTest, AFaultBefallsThePlannedTransferOfItsKindOnce) {
  SimulatedDisk disk(2);
  disk.plan(DiskFault::lost_write, 1);
  write(disk, 'a');
  read(disk);
  write(disk, 'b');
  EXPECT_EQ(read(disk), std::string(kBytes, 'a'));
  EXPECT_EQ(disk.fired(DiskFault::lost_write), 1);
  write(disk, 'c');
  EXPECT_EQ(read(disk), std::string(kBytes, 'c'));
  EXPECT_EQ(disk.fired(DiskFault::lost_write), 1);
  const auto made = disk.transfers();
  EXPECT_EQ(std::ranges::count(made, Op::write), 3);
  EXPECT_EQ(std::ranges::count(made, Op::read), 3);
}

TEST_F(SimulatedDiskTest, OneBitFlips) {
  SimulatedDisk disk(3);
  write(disk, 'a');
  disk.plan(DiskFault::flipped_read, 0);
  EXPECT_EQ(bits_changed(read(disk), 'a'), 1);
  EXPECT_EQ(read(disk), std::string(kBytes, 'a')) << "only on its way";
  disk.plan(DiskFault::flipped_write, 0);
  write(disk, 'a');
  EXPECT_EQ(bits_changed(read(disk), 'a'), 1);
  EXPECT_EQ(bits_changed(read(disk), 'a'), 1) << "on the disk";
}

TEST_F(SimulatedDiskTest, ATornWriteLandsInFrontAndReportsSuccess) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SimulatedDisk disk(seed);
    write(disk, 'a');
    disk.plan(DiskFault::torn_write, 0);
    EXPECT_EQ(write(disk, 'b'), static_cast<int32_t>(kBytes));
    const std::string text = read(disk);
    const size_t landed = text.find('a');
    ASSERT_LT(landed, kBytes);
    EXPECT_EQ(landed % SimulatedDisk::kSectorBytes, 0u);
    EXPECT_EQ(text, std::string(landed, 'b') + std::string(kBytes - landed, 'a'));
  }
}

TEST_F(SimulatedDiskTest, MisdirectedTransfersGoToAnotherPlace) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SimulatedDisk disk(seed);
    write(disk, 'a');
    disk.plan(DiskFault::misdirected_write, 0);
    write(disk, 'b', kBlock, kBlock);
    const std::string text = read(disk);
    EXPECT_EQ(text[kBlock], 'a');
    EXPECT_EQ(std::ranges::count(text, 'b'), kBlock);
    write(disk, 'a');
    write(disk, 'b', kBlock, kBlock);
    disk.plan(DiskFault::misdirected_read, 0);
    transfer(disk, Op::read, kBlock, kBlock);
    EXPECT_EQ(data_.span()[kBlock], std::byte{'a'});
  }
}

TEST_F(SimulatedDiskTest, PowerLossTakesOnlyWhatWasNotFlushed) {
  bool kept_all = false, lost_all = false, torn = false;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SimulatedDisk disk(seed);
    write(disk, 'a');
    transfer(disk, Op::flush);
    write(disk, 'b', 0, 4 * kBlock);
    disk.plan(DiskFault::power_loss, 0);
    EXPECT_EQ(transfer(disk, Op::read), -EIO);
    EXPECT_EQ(transfer(disk, Op::read), -EIO) << "until it is back";
    disk.restore_power();
    const std::string text = read(disk);
    EXPECT_EQ(text.substr(4 * kBlock), std::string(4 * kBlock, 'a'));
    const auto new_bytes = static_cast<uint64_t>(std::ranges::count(text, 'b'));
    kept_all |= new_bytes == 4 * kBlock;
    lost_all |= new_bytes == 0;
    torn |= new_bytes % kBlock != 0;
  }
  EXPECT_TRUE(kept_all);
  EXPECT_TRUE(lost_all);
  EXPECT_TRUE(torn);
}

TEST_F(SimulatedDiskTest, AFlushThatIsIgnoredMakesNothingSafe) {
  bool lost = false;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    for (const bool planned : {false, true}) {
      SimulatedDisk disk(seed);
      if (planned) {
        disk.plan(DiskFault::lost_flush, 0);
      } else {
        disk.ignore_flushes(directory_.file("file"), true);
      }
      write(disk, 'a');
      EXPECT_EQ(transfer(disk, Op::flush), 0);
      disk.plan(DiskFault::power_loss, 0);
      EXPECT_EQ(transfer(disk, Op::flush), -EIO);
      disk.restore_power();
      lost |= read(disk) != std::string(kBytes, 'a');
    }
  }
  EXPECT_TRUE(lost);
}

}  // namespace
}  // namespace strata::io
