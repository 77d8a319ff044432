#include "kernels/device/host_memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <limits>
#include <vector>

#include "strata/error.h"

namespace strata {
namespace {

class HostMemoryTest : public testing::TestWithParam<size_t> {
 protected:
  size_t pages() const { return (GetParam() + kPageBytes - 1) / kPageBytes; }
};
INSTANTIATE_TEST_SUITE_P(Bytes, HostMemoryTest,
                         testing::Values(1, kPageBytes, kPageBytes + 1, kHugePageBytes - 1,
                                         kHugePageBytes, 2 * kHugePageBytes + 5));

TEST_P(HostMemoryTest, BlocksAreResidentAlignedAndZero) {
  const size_t bytes = GetParam();
  void* const data = map_resident(bytes);
  const size_t alignment = bytes < kHugePageBytes ? kPageBytes : kHugePageBytes;
  if (bytes + kPageBytes > kHugePageBytes) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % alignment, 0u);
  }
  std::vector<unsigned char> resident(pages());
  ASSERT_EQ(mincore(data, pages() * kPageBytes, resident.data()), 0);
  EXPECT_TRUE(std::all_of(resident.begin(), resident.end(), [](int page) { return page & 1; }));
  const auto* const begin = static_cast<const std::byte*>(data);
  EXPECT_TRUE(
      std::all_of(begin, begin + bytes, [](std::byte value) { return value == std::byte{0}; }));
  unmap_resident(data, bytes);
}

TEST_P(HostMemoryTest, FreedBlocksAreUnmapped) {
  const size_t bytes = GetParam();
  void* const data = map_resident(bytes);
  unmap_resident(data, bytes);
  unsigned char resident = 0;
  EXPECT_EQ(mincore(data, kPageBytes, &resident), -1);
  EXPECT_EQ(errno, ENOMEM);
  EXPECT_EQ(
      mincore(static_cast<std::byte*>(data) + (pages() - 1) * kPageBytes, kPageBytes, &resident),
      -1);
}

TEST(HostMemoryLimits, MoreThanTheMachineHasIsADeviceError) {
  EXPECT_THROW(map_resident(size_t{1} << 55), DeviceError);
  EXPECT_THROW(map_resident(std::numeric_limits<size_t>::max()), DeviceError);
}

}  // namespace
}  // namespace strata
