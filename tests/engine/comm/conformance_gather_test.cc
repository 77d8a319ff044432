// What holds of every world: bytes arrive where they belong, in the order of the queue, counted.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <numeric>
#include <thread>

#include "strata/error.h"
#include "tests/engine/comm/ranks.h"

namespace strata {
namespace {

using testing_support::every_world;
using testing_support::Rank;
using testing_support::RanksTest;
using testing_support::world_name;

using GatherConformanceTest = RanksTest;
INSTANTIATE_TEST_SUITE_P(Worlds, GatherConformanceTest, testing::ValuesIn(every_world()),
                         world_name);

constexpr TrafficTag kTag = {StateKind::param, 7, "gather"};
constexpr std::byte kPoison{0xA5};

// A byte that tells its rank, its place and the round.
std::byte byte_of(int rank, uint64_t place, int round) {
  return static_cast<std::byte>(rank * 59 + place * 7 + place / 251 + round * 13);
}

// size() shards, only one's own filled, between guards that nothing may write to.
class Flat {
 public:
  static constexpr uint64_t kGuardBytes = 16;

  Flat(const Rank& rank, uint64_t shard_bytes, uint64_t offset_bytes)
      : size_(rank.size()),
        shard_bytes_(shard_bytes),
        begin_(kGuardBytes + offset_bytes),
        bytes_(begin_ + size_ * shard_bytes + kGuardBytes, kPoison) {}

  std::byte* data() { return bytes_.data() + begin_; }

  void fill(int rank, int round) {
    for (uint64_t i = 0; i < shard_bytes_; ++i) {
      data()[rank * shard_bytes_ + i] = byte_of(rank, i, round);
    }
  }

  // How many bytes are not what they should be after a gather.
  int64_t wrong(int round) {
    int64_t wrong = 0;
    for (int rank = 0; rank < size_; ++rank) {
      for (uint64_t i = 0; i < shard_bytes_; ++i) {
        wrong += data()[rank * shard_bytes_ + i] != byte_of(rank, i, round);
      }
    }
    const auto is_poison = [](std::byte byte) { return byte == kPoison; };
    wrong += !std::all_of(bytes_.begin(), bytes_.begin() + begin_, is_poison);
    wrong += !std::all_of(bytes_.end() - kGuardBytes, bytes_.end(), is_poison);
    return wrong;
  }

 private:
  const int size_;
  const uint64_t shard_bytes_;
  const uint64_t begin_;
  std::vector<std::byte> bytes_;
};

TEST_P(GatherConformanceTest, ShardsOfAnySizeAnywhereBecomeWhole) {
  on_every_rank([](Rank& rank) {
    for (const uint64_t shard_bytes : {0, 1, 2, 3, 7, 1000, 4095, 4096, 65537, 300'001}) {
      for (const uint64_t offset_bytes : {0, 1, 3}) {
        Flat flat(rank, shard_bytes, offset_bytes);
        flat.fill(rank.rank(), 0);
        rank.communicator->all_gather(flat.data(), shard_bytes, kTag);
        rank.queue->synchronize();
        EXPECT_EQ(flat.wrong(0), 0) << shard_bytes << " bytes at " << offset_bytes;
      }
    }
  });
}

// The shard is filled, gathered and read by work on the queue; nothing but the queue's order keeps
// rounds apart.
TEST_P(GatherConformanceTest, ManyInFlightKeepTheOrderOfTheQueue) {
  for (const uint64_t delay_seed : {0, 1, 2, 3}) {
    on_every_rank(
        [](Rank& rank) {
          constexpr uint64_t kShardBytes = 5000;
          constexpr int kRounds = 40;
          Flat flat(rank, kShardBytes, 0);
          int64_t wrong = 0;
          for (int round = 0; round < kRounds; ++round) {
            rank.queue->run([&, round] { flat.fill(rank.rank(), round); });
            rank.communicator->all_gather(flat.data(), kShardBytes, kTag);
            rank.queue->run([&, round] { wrong += flat.wrong(round); });
          }
          rank.queue->synchronize();
          EXPECT_EQ(wrong, 0);
        },
        delay_seed);
  }
}

TEST_P(GatherConformanceTest, AnExchangeBringsEverybodysValues) {
  on_every_rank([](Rank& rank) {
    for (const size_t bytes : {0, 1, 8, 4096, 1 << 20}) {
      std::vector<std::byte> mine(bytes);
      for (size_t i = 0; i < bytes; ++i) mine[i] = byte_of(rank.rank(), i, 1);
      Flat all(rank, bytes, 1);
      rank.communicator->exchange(mine, {all.data(), bytes * rank.size()});
      EXPECT_EQ(all.wrong(1), 0) << bytes << " bytes";
    }
  });
}

// Each round's value is made of what all ranks had in the round before.
TEST_P(GatherConformanceTest, ExchangesOfRanksThatDawdleStayInStep) {
  on_every_rank([](Rank& rank) {
    std::array<int64_t, 8> all = {};
    int64_t mine = rank.rank() + 1;
    int64_t expected = rank.size() * (rank.size() + 1) / 2;
    for (int round = 0; round < 20; ++round) {
      if (round % rank.size() == rank.rank()) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
      const auto everybodys = std::span(all).first(rank.size());
      rank.communicator->exchange(std::as_bytes(std::span(&mine, 1)),
                                  std::as_writable_bytes(everybodys));
      mine = std::accumulate(everybodys.begin(), everybodys.end(), int64_t{0}) % 1'000'003;
      EXPECT_EQ(mine, expected);
      expected = expected * rank.size() % 1'000'003;
    }
  });
}

TEST_P(GatherConformanceTest, OneCommunicatorAfterTheOther) {
  on_every_rank([](Rank& rank) {
    for (int round = 0; round < 5; ++round) {
      rank.communicator.reset();
      rank.communicator = rank.make_communicator(*rank.queue);
      Flat flat(rank, 100, 0);
      flat.fill(rank.rank(), round);
      rank.communicator->all_gather(flat.data(), 100, kTag);
      rank.queue->synchronize();
      EXPECT_EQ(flat.wrong(round), 0);
    }
  });
}

// Ranks enqueue on the two queues in different orders.
TEST_P(GatherConformanceTest, TwoCommunicatorsOnTwoQueuesDoNotMixTheirBytes) {
  on_every_rank(
      [](Rank& rank) {
        const auto other_queue = rank.make_queue("other");
        const auto other = rank.make_communicator(*other_queue);
        constexpr uint64_t kShardBytes = 3000;
        Flat flat(rank, kShardBytes, 0);
        Flat other_flat(rank, kShardBytes, 0);
        int64_t wrong = 0;
        int64_t other_wrong = 0;
        const auto gather = [&](int round) {
          rank.queue->run([&, round] { flat.fill(rank.rank(), round); });
          rank.communicator->all_gather(flat.data(), kShardBytes, kTag);
          rank.queue->run([&, round] { wrong += flat.wrong(round); });
        };
        const auto gather_other = [&](int round) {
          other_queue->run([&, round] { other_flat.fill(rank.rank(), round); });
          other->all_gather(other_flat.data(), kShardBytes, kTag);
          other_queue->run([&, round] { other_wrong += other_flat.wrong(round); });
        };
        // A fabric may connect its peers at its first trade, which waits for them.
        gather(99);
        gather_other(99);
        for (int round = 0; round < 20; ++round) {
          if (rank.rank() % 2 == 0) gather(round);
          gather_other(100 + round);
          if (rank.rank() % 2 != 0) gather(round);
        }
        rank.queue->synchronize();
        other_queue->synchronize();
        EXPECT_EQ(wrong, 0);
        EXPECT_EQ(other_wrong, 0);
      },
      5);
}

TEST_P(GatherConformanceTest, EveryByteSentIsReported) {
  on_every_rank([](Rank& rank) {
    const uint64_t peers = rank.size() - 1;
    Flat flat(rank, 999, 0);
    rank.communicator->all_gather(flat.data(), 999, kTag);
    rank.queue->synchronize();
    const std::vector<TrafficRecord> gathered = rank.sink.of(Activity::comm);
    std::array<std::byte, 11> mine = {};
    std::array<std::byte, 44> all = {};
    rank.communicator->exchange(mine, std::span(all).first(mine.size() * rank.size()));
    const std::vector<TrafficRecord> exchanged = rank.sink.of(Activity::comm);
    if (peers == 0) {
      EXPECT_EQ(exchanged.size(), 0u);
      return;
    }
    ASSERT_EQ(gathered.size(), 1u);
    EXPECT_EQ(gathered[0].bytes, peers * 999);
    EXPECT_EQ(gathered[0].tag.kind, StateKind::param);
    EXPECT_EQ(gathered[0].tag.index, 7);
    EXPECT_STREQ(gathered[0].tag.label, "gather");
    EXPECT_STREQ(gathered[0].lane, "compute");
    EXPECT_LE(gathered[0].begin_ns, gathered[0].end_ns);
    ASSERT_EQ(exchanged.size(), 2u);
    EXPECT_EQ(exchanged[1].bytes, peers * 11);
    EXPECT_EQ(exchanged[1].tag.kind, StateKind::other);
  });
}

TEST_P(GatherConformanceTest, AnExchangeWithoutRoomIsRefused) {
  on_every_rank([](Rank& rank) {
    std::array<std::byte, 8> mine = {};
    std::array<std::byte, 100> all = {};
    EXPECT_THROW(rank.communicator->exchange(mine, all), Error);
  });
}

TEST_P(GatherConformanceTest, TheDescriptionSaysHowManyRanksThereAre) {
  on_every_rank([](Rank& rank) {
    const std::string expected =
        std::to_string(rank.size()) + (rank.size() == 1 ? " rank" : " ranks");
    EXPECT_EQ(rank.communicator->size(), rank.size());
    EXPECT_EQ(rank.communicator->rank(), rank.rank());
    EXPECT_EQ(rank.communicator->description().substr(0, expected.size()), expected);
  });
}

}  // namespace
}  // namespace strata
