// What holds of every world: a reduction has the bits of a sum in fp32, rank 0 first.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <random>

#include "kernels/ops/optimizer_ops.h"
#include "strata/error.h"
#include "strata/grain.h"
#include "tests/engine/comm/ranks.h"

namespace strata {
namespace {

using testing_support::every_world;
using testing_support::Rank;
using testing_support::RankOptions;
using testing_support::RanksTest;
using testing_support::world_name;

using ReduceConformanceTest = RanksTest;
INSTANTIATE_TEST_SUITE_P(Worlds, ReduceConformanceTest, testing::ValuesIn(every_world()),
                         world_name);

constexpr TrafficTag kTag = {StateKind::grad, 3, "reduce"};
constexpr DType kDTypes[] = {DType::fp32, DType::bf16, DType::fp16};

// Values of one rank as an addend is stored, and as fp32 reads it.
struct Addend {
  std::vector<std::byte> stored;
  std::vector<float> values;
};

// Of very different sizes, so that the order of a sum is in its last bits; all within fp16.
Addend addend(DType dtype, int64_t numel, int rank, uint64_t seed) {
  std::mt19937_64 random(seed * 1000 + rank);
  std::uniform_real_distribution<float> mantissa(-2.0f, 2.0f);
  std::uniform_int_distribution<int> exponent(-13, 13);
  Addend result;
  result.values.resize(numel);
  for (float& value : result.values) value = std::ldexp(mantissa(random), exponent(random));
  result.stored.resize(numel * size_bytes(dtype));
  ops::cast(result.stored.data(), dtype, result.values.data(), DType::fp32, numel);
  ops::cast(result.values.data(), DType::fp32, result.stored.data(), dtype, numel);
  return result;
}

// The definition. `ranks` in the order in which they are added.
std::vector<float> sum_of(DType dtype, int64_t numel, const std::vector<int>& ranks,
                          uint64_t seed) {
  std::vector<float> sum = addend(dtype, numel, ranks[0], seed).values;
  for (size_t i = 1; i < ranks.size(); ++i) {
    const std::vector<float> values = addend(dtype, numel, ranks[i], seed).values;
    for (int64_t at = 0; at < numel; ++at) sum[at] += values[at];
  }
  return sum;
}

std::vector<int> in_order(int size) {
  std::vector<int> ranks(size);
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

int64_t differing_bits(const float* one, const float* other, int64_t numel) {
  int64_t differing = 0;
  for (int64_t i = 0; i < numel; ++i) {
    differing += std::bit_cast<uint32_t>(one[i]) != std::bit_cast<uint32_t>(other[i]);
  }
  return differing;
}

// Room for `grains` of each peer; odd bytes at its end that no grain fits in.
std::vector<std::byte> scratch_for(const Rank& rank, DType dtype, int64_t grains) {
  const int64_t peers = rank.size() - 1;
  return std::vector<std::byte>(peers * (grains * kGrainNumel * size_bytes(dtype) + 100));
}

TEST(ReduceReference, AnotherOrderHasOtherBits) {
  constexpr int64_t kNumel = kGrainNumel;
  for (const DType dtype : kDTypes) {
    const std::vector<float> sum = sum_of(dtype, kNumel, {0, 1, 2}, 1);
    EXPECT_GT(differing_bits(sum.data(), sum_of(dtype, kNumel, {2, 1, 0}, 1).data(), kNumel), 50);
    EXPECT_GT(differing_bits(sum.data(), sum_of(dtype, kNumel, {1, 2, 0}, 1).data(), kNumel), 50);
  }
}

TEST_P(ReduceConformanceTest, TheBitsAreThoseOfASumInRankOrderWhateverTheScratch) {
  on_every_rank([](Rank& rank) {
    constexpr int64_t kShard = 5 * kGrainNumel;
    for (const DType dtype : kDTypes) {
      const Addend mine = addend(dtype, kShard * rank.size(), rank.rank(), 2);
      const std::vector<float> sum = sum_of(dtype, kShard * rank.size(), in_order(rank.size()), 2);
      for (const int64_t scratch_grains : {1, 2, 3, 5, 9}) {
        std::vector<std::byte> scratch = scratch_for(rank, dtype, scratch_grains);
        std::vector<float> out(kShard, std::nanf(""));
        rank.communicator->reduce_scatter({mine.stored.data(), dtype, out.data(), kShard, scratch},
                                          kTag);
        rank.queue->synchronize();
        EXPECT_EQ(differing_bits(out.data(), sum.data() + kShard * rank.rank(), kShard), 0)
            << name(dtype) << ", scratch of " << scratch_grains;
      }
    }
  });
}

// As a training step does: addends written by work on the queue, one scratch for all, gathers in
// between. The queue's random delays may change no bit.
TEST_P(ReduceConformanceTest, DelaysChangeNoBit) {
  for (const uint64_t delay_seed : {0, 1, 2, 3}) {
    on_every_rank(
        [](Rank& rank) {
          constexpr int64_t kShard = 2 * kGrainNumel;
          constexpr int kRounds = 6;
          const int64_t numel = kShard * rank.size();
          std::vector<std::byte> scratch = scratch_for(rank, DType::bf16, 1);
          std::vector<std::byte> flat(numel * size_bytes(DType::bf16));
          std::vector<float> whole(numel);
          int64_t wrong = 0;
          for (uint64_t round = 0; round < kRounds; ++round) {
            rank.queue->run([&, round] {
              const Addend mine = addend(DType::bf16, numel, rank.rank(), round);
              std::copy(mine.stored.begin(), mine.stored.end(), flat.begin());
            });
            rank.communicator->reduce_scatter(
                {flat.data(), DType::bf16, whole.data() + kShard * rank.rank(), kShard, scratch},
                kTag);
            rank.communicator->all_gather(reinterpret_cast<std::byte*>(whole.data()),
                                          kShard * sizeof(float), kTag);
            rank.queue->run([&, round] {
              const auto sum = sum_of(DType::bf16, numel, in_order(rank.size()), round);
              wrong += differing_bits(whole.data(), sum.data(), numel);
            });
          }
          rank.queue->synchronize();
          EXPECT_EQ(wrong, 0);
        },
        delay_seed);
  }
}

void expect_every_byte_reported(Rank& rank, int64_t scratch_grains) {
  constexpr int64_t kShard = 5 * kGrainNumel;
  for (const DType dtype : kDTypes) {
    const uint64_t before = rank.sink.of(Activity::comm).size();
    const Addend mine = addend(dtype, kShard * rank.size(), rank.rank(), 4);
    std::vector<std::byte> scratch = scratch_for(rank, dtype, scratch_grains);
    std::vector<float> out(kShard);
    rank.communicator->reduce_scatter({mine.stored.data(), dtype, out.data(), kShard, scratch},
                                      kTag);
    rank.queue->synchronize();
    uint64_t bytes = 0;
    const std::vector<TrafficRecord> records = rank.sink.of(Activity::comm);
    for (size_t i = before; i < records.size(); ++i) {
      bytes += records[i].bytes;
      EXPECT_EQ(records[i].tag.index, 3);
    }
    EXPECT_EQ(bytes, (rank.size() - 1) * kShard * size_bytes(dtype));
  }
}

TEST_P(ReduceConformanceTest, EveryByteSentIsReported) {
  on_every_rank([](Rank& rank) { expect_every_byte_reported(rank, 2); });
}

TEST_P(ReduceConformanceTest, WhatCannotBeReducedIsRefusedAtOnce) {
  on_every_rank([](Rank& rank) {
    std::vector<std::byte> flat(rank.size() * kGrainNumel * sizeof(float));
    std::vector<float> out(kGrainNumel);
    std::vector<std::byte> scratch = scratch_for(rank, DType::fp32, 1);
    const auto reduce = [&](DType dtype, int64_t numel, std::span<std::byte> room) {
      rank.communicator->reduce_scatter({flat.data(), dtype, out.data(), numel, room}, kTag);
    };
    EXPECT_THROW(reduce(DType::int32, kGrainNumel, scratch), Error);
    EXPECT_THROW(reduce(DType::fp32, kGrainNumel - 1, scratch), Error);
    EXPECT_THROW(reduce(DType::fp32, -kGrainNumel, scratch), Error);
    if (rank.size() > 1) {
      const auto too_small = std::span(scratch).first((rank.size() - 1) * kGrainNumel * 4 - 1);
      EXPECT_THROW(reduce(DType::fp32, kGrainNumel, too_small), Error);
    }
  });
}

// Sums by the network itself, which promise less: close to the true one, and the same every time.
class FastReduceTest : public RanksTest {};
INSTANTIATE_TEST_SUITE_P(Worlds, FastReduceTest,
                         testing::Values(RankOptions{.size = 2, .fabric = true, .fast = true},
                                         RankOptions{.size = 4, .fabric = true, .fast = true},
                                         RankOptions{
                                             .size = 3, .fabric = true, .fast = true, .tcp = true}),
                         world_name);

double unit_roundoff(DType dtype) {
  if (dtype == DType::fp32) return std::ldexp(1.0, -24);
  return std::ldexp(1.0, dtype == DType::bf16 ? -8 : -11);
}

// How many of a rank's sums are further from the true one than `size - 1` roundings of partial sums
// can be: each is off by half an ULP of a sum that is no larger than that of the addends' sizes.
int64_t too_far(const Rank& rank, DType dtype, const std::vector<float>& sums, uint64_t seed) {
  const auto shard = static_cast<int64_t>(sums.size());
  std::vector<double> truth(shard), sizes(shard);
  for (int from = 0; from < rank.size(); ++from) {
    const Addend addends = addend(dtype, shard * rank.size(), from, seed);
    for (int64_t i = 0; i < shard; ++i) {
      const double value = addends.values[shard * rank.rank() + i];
      truth[i] += value;
      sizes[i] += std::abs(value);
    }
  }
  constexpr double kSmallestFp16 = 0x1p-24;
  const double roundings = (rank.size() - 1) * unit_roundoff(dtype) * 1.1;
  int64_t count = 0;
  for (int64_t i = 0; i < shard; ++i) {
    count += !(std::abs(sums[i] - truth[i]) <= roundings * sizes[i] + kSmallestFp16);
  }
  return count;
}

TEST_P(FastReduceTest, SumsAreTheNetworksAndCloseToTheTrueOnes) {
  on_every_rank([](Rank& rank) {
    constexpr int64_t kShard = 5 * kGrainNumel;
    for (const DType dtype : kDTypes) {
      const Addend mine = addend(dtype, kShard * rank.size(), rank.rank(), 5);
      std::vector<std::byte> scratch(dtype == DType::fp32 ? 0 : kShard * size_bytes(dtype));
      std::vector<std::vector<float>> outs;
      for (int time = 0; time < 2; ++time) {
        auto& out = outs.emplace_back(kShard, std::nanf(""));
        rank.communicator->reduce_scatter({mine.stored.data(), dtype, out.data(), kShard, scratch},
                                          kTag);
        rank.queue->synchronize();
      }
      EXPECT_EQ(too_far(rank, dtype, outs[0], 5), 0) << name(dtype);
      EXPECT_EQ(differing_bits(outs[0].data(), outs[1].data(), kShard), 0) << name(dtype);
      // Two addends in fp32 have one sum, whatever the order.
      if (dtype == DType::fp32 && rank.size() == 2) continue;
      const std::vector<float> exact =
          sum_of(dtype, kShard * rank.size(), in_order(rank.size()), 5);
      const bool in_rank_order = dtype == DType::fp32 && rank.rank() == rank.size() - 1;
      const int64_t differing =
          differing_bits(outs[0].data(), exact.data() + kShard * rank.rank(), kShard);
      EXPECT_EQ(differing > 50, !in_rank_order) << name(dtype);
    }
  });
}

TEST_P(FastReduceTest, EveryByteSentIsReported) {
  on_every_rank([](Rank& rank) { expect_every_byte_reported(rank, 5); });
}

TEST_P(FastReduceTest, AScratchWithoutRoomForAShardIsRefused) {
  on_every_rank([](Rank& rank) {
    std::vector<std::byte> flat(rank.size() * kGrainNumel * sizeof(float));
    std::vector<float> out(kGrainNumel);
    std::vector<std::byte> scratch(kGrainNumel * 2 - 1);
    EXPECT_THROW(rank.communicator->reduce_scatter(
                     {flat.data(), DType::bf16, out.data(), kGrainNumel, scratch}, kTag),
                 Error);
  });
}

TEST_P(FastReduceTest, TheStartUpLineSaysSo) {
  on_every_rank([](Rank& rank) {
    EXPECT_NE(rank.communicator->description().find("a stand-in, which adds up gradients"),
              std::string::npos);
  });
}

}  // namespace
}  // namespace strata
