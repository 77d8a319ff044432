// What holds of every device's memory: the cap, the counters, and what a block is.
#include <algorithm>
#include <cstring>
#include <random>
#include <thread>
#include <type_traits>

#include "strata/error.h"
#include "tests/kernels/device/device_fixture.h"

namespace strata {
namespace {

using MemoryConformanceTest = DeviceTest;
INSTANTIATE_TEST_SUITE_P(Devices, MemoryConformanceTest, every_kind(), kind_name);

static_assert(!std::is_copy_constructible_v<MemoryBlock>);
static_assert(!std::is_copy_assignable_v<MemoryBlock>);
static_assert(std::is_nothrow_move_constructible_v<MemoryBlock>);
static_assert(std::is_nothrow_move_assignable_v<MemoryBlock>);

bool aligned(const MemoryBlock& block) {
  return reinterpret_cast<uintptr_t>(block.data()) % 4096 == 0;
}

TEST_P(MemoryConformanceTest, TheCapHoldsToTheByte) {
  constexpr size_t kCap = (size_t{1} << 20) + 1;
  const auto device = make_device(kCap);
  EXPECT_EQ(device->cap_bytes(), kCap);
  EXPECT_THROW(device->allocate(kCap + 1), OutOfBudget);
  EXPECT_EQ(device->used_bytes(), 0u);
  const MemoryBlock all = device->allocate(kCap);
  EXPECT_EQ(device->used_bytes(), kCap);
  EXPECT_THROW(device->allocate(1), OutOfBudget);
}

TEST_P(MemoryConformanceTest, ARefusalNamesWhatIsNeededAndWhatIsAvailable) {
  const auto device = make_device(10000);
  const MemoryBlock block = device->allocate(6000);
  try {
    device->allocate(4001);
    FAIL() << "one byte too much was given";
  } catch (const OutOfBudget& error) {
    EXPECT_EQ(error.tier, Tier::device);
    EXPECT_EQ(error.needed_bytes, 4001u);
    EXPECT_EQ(error.available_bytes, 4000u);
    EXPECT_NE(std::string(error.what()).find("4001"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("4000"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("10000"), std::string::npos);
  }
  const MemoryBlock rest = device->allocate(4000);
}

TEST_P(MemoryConformanceTest, UsedFollowsBlocksAndPeakStays) {
  MemoryBlock first = device_->allocate(1000);
  {
    const MemoryBlock second = device_->allocate(500);
    EXPECT_EQ(device_->used_bytes(), 1500u);
  }
  EXPECT_EQ(device_->used_bytes(), 1000u);
  first.reset();
  first.reset();
  EXPECT_EQ(device_->used_bytes(), 0u);
  first = device_->allocate(10);
  EXPECT_EQ(device_->used_bytes(), 10u);
  EXPECT_EQ(device_->peak_bytes(), 1500u);
}

TEST_P(MemoryConformanceTest, BlocksAreAlignedAndZeroEvenWhenUsedBefore) {
  const auto queue = make_queue();
  for (const size_t bytes : {size_t{1}, size_t{4096}, size_t{5000}, size_t{3} << 20}) {
    SCOPED_TRACE(testing::Message() << bytes << " bytes");
    for (int time = 0; time < 2; ++time) {
      const MemoryBlock block = device_->allocate(bytes);
      const MemoryBlock host = device_->allocate_pinned(bytes);
      EXPECT_EQ(block.bytes(), bytes);
      EXPECT_TRUE(aligned(block));
      EXPECT_TRUE(aligned(host));
      const auto zero = [](std::byte b) { return b == std::byte{0}; };
      EXPECT_TRUE(std::all_of(host.data(), host.data() + bytes, zero));
      std::memset(host.data(), 1, bytes);
      queue->copy(host.data(), block.data(), bytes, CopyDirection::device_to_host, {});
      queue->synchronize();
      EXPECT_TRUE(std::all_of(host.data(), host.data() + bytes, zero));
      std::memset(host.data(), 1, bytes);
      queue->copy(block.data(), host.data(), bytes, CopyDirection::host_to_device, {});
      queue->synchronize();
    }
  }
}

TEST_P(MemoryConformanceTest, PinnedMemoryIsNotCapped) {
  const auto device = make_device(4096);
  const MemoryBlock pinned = device->allocate_pinned(1 << 20);
  EXPECT_EQ(pinned.bytes(), size_t{1} << 20);
  EXPECT_EQ(device->used_bytes(), 0u);
  EXPECT_EQ(device->peak_bytes(), 0u);
}

TEST_P(MemoryConformanceTest, NoBytesAreAnEmptyBlock) {
  const MemoryBlock none = device_->allocate(0);
  EXPECT_EQ(none.data(), nullptr);
  EXPECT_EQ(none.bytes(), 0u);
  EXPECT_EQ(device_->allocate_pinned(0).data(), nullptr);
}

TEST_P(MemoryConformanceTest, MovingABlockMovesItsOwnership) {
  MemoryBlock first = device_->allocate(100);
  std::byte* const data = first.data();
  MemoryBlock second = std::move(first);
  EXPECT_EQ(first.data(), nullptr);
  EXPECT_EQ(first.bytes(), 0u);
  EXPECT_EQ(second.data(), data);
  EXPECT_EQ(device_->used_bytes(), 100u);

  MemoryBlock third = device_->allocate(10);
  third = std::move(second);
  EXPECT_EQ(third.data(), data);
  EXPECT_EQ(third.bytes(), 100u);
  EXPECT_EQ(device_->used_bytes(), 100u);

  MemoryBlock& same = third;
  third = std::move(same);
  EXPECT_EQ(third.data(), data);
  third = MemoryBlock();
  EXPECT_EQ(device_->used_bytes(), 0u);
}

TEST_P(MemoryConformanceTest, WhatTheMachineDoesNotHaveIsADeviceErrorAndNotCounted) {
  const auto device = make_device(std::numeric_limits<size_t>::max());
  EXPECT_THROW(device->allocate(size_t{1} << 55), DeviceError);
  EXPECT_THROW(device->allocate(std::numeric_limits<size_t>::max()), DeviceError);
  EXPECT_THROW(device->allocate_pinned(size_t{1} << 55), DeviceError);
  EXPECT_EQ(device->used_bytes(), 0u);
  const MemoryBlock block = device->allocate(4096);
}

TEST_P(MemoryConformanceTest, ThreadsTogetherNeverExceedTheCap) {
  constexpr size_t kCap = 40000;
  const auto device = make_device(kCap);
  std::vector<std::jthread> threads;
  for (int seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&, seed] {
      std::mt19937 random(seed);
      for (int i = 0; i < 100; ++i) {
        try {
          const MemoryBlock block = device->allocate(1 + random() % 20000);
          EXPECT_LE(device->used_bytes(), kCap);
        } catch (const OutOfBudget&) {
          // As it should, now and then.
        }
      }
    });
  }
  threads.clear();
  EXPECT_LE(device->peak_bytes(), kCap);
  EXPECT_GT(device->peak_bytes(), 0u);
  EXPECT_EQ(device->used_bytes(), 0u);
}

}  // namespace
}  // namespace strata
