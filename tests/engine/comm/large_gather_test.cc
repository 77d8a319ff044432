// Shards of more bytes than MPI's counts, and than 32 bits with a sign, can say.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <fstream>
#include <string>

#include "tests/engine/comm/ranks.h"

namespace strata {
namespace {

using testing_support::every_world;
using testing_support::Rank;
using testing_support::RanksTest;
using testing_support::world_name;

using LargeGatherTest = RanksTest;
INSTANTIATE_TEST_SUITE_P(Worlds, LargeGatherTest, testing::ValuesIn(every_world()), world_name);

constexpr uint64_t kShardBytes = (uint64_t{1} << 31) + 12345;

uint64_t available_bytes() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  uint64_t value = 0;
  while (file >> key >> value >> unit) {
    if (key == "MemAvailable:") return value << 10;
  }
  return 0;
}

// Memory that takes none until it is written.
class LazyBytes {
 public:
  explicit LazyBytes(uint64_t bytes)
      : bytes_(bytes),
        data_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
  ~LazyBytes() { munmap(data_, bytes_); }
  LazyBytes(const LazyBytes&) = delete;
  LazyBytes& operator=(const LazyBytes&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  const uint64_t bytes_;
  void* const data_;
};

// Every shard has marks of its rank at both ends and every 100 MB.
template <typename Visit>
void for_each_mark(std::byte* flat, int rank, const Visit& visit) {
  constexpr uint64_t kStride = 100'000'000;
  std::byte* const shard = flat + rank * kShardBytes;
  for (uint64_t at = 0; at < kShardBytes; at += kStride) {
    visit(shard[at], static_cast<std::byte>(rank + 1 + 10 * (at / kStride)));
  }
  visit(shard[kShardBytes - 1], static_cast<std::byte>(rank + 251));
}

TEST_P(LargeGatherTest, ShardsAboveTwoToTheThirtyOneBytesArriveWhole) {
  const auto size = static_cast<uint64_t>(GetParam().size);
  if (size != 2 || GetParam().chunk_bytes != 0) GTEST_SKIP() << "two ranks are enough";
  const uint64_t needed_bytes = size * size * kShardBytes + (uint64_t{2} << 30);
  if (available_bytes() < needed_bytes) {
    GTEST_SKIP() << "needs " << (needed_bytes >> 20) << " MiB of available memory";
  }
  on_every_rank([](Rank& rank) {
    const LazyBytes flat(rank.size() * kShardBytes);
    for_each_mark(flat.data(), rank.rank(), [](std::byte& at, std::byte mark) { at = mark; });
    rank.communicator->all_gather(flat.data(), kShardBytes, {StateKind::param, 0, "gather"});
    rank.queue->synchronize();
    int wrong = 0;
    for (int from = 0; from < rank.size(); ++from) {
      for_each_mark(flat.data(), from,
                    [&wrong](std::byte& at, std::byte mark) { wrong += at != mark; });
    }
    EXPECT_EQ(wrong, 0);
  });
}

}  // namespace
}  // namespace strata
