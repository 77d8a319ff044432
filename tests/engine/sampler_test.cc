// Rows of a data set: each once an epoch, in one order for every world, from any position on.
#include "strata/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "engine/data/below.h"
#include "strata/error.h"

namespace strata {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;
using Row = Sampler::Row;

constexpr uint64_t kSeed = 5;

// `count` rows from a position on, drawn one at a time by one rank.
std::vector<Row> run(int64_t rows, int64_t count, int64_t from = 0, uint64_t seed = kSeed) {
  Sampler sampler(rows, seed);
  sampler.seek(from);
  std::vector<Row> drawn(static_cast<size_t>(count));
  for (Row& row : drawn) sampler.next(std::span(&row, 1));
  return drawn;
}

std::vector<int64_t> epoch_of(const std::vector<Row>& drawn, int64_t epoch) {
  std::vector<int64_t> order;
  for (const Row& row : drawn) {
    if (row.epoch == epoch) order.push_back(row.index);
  }
  return order;
}

TEST(Sampler, AnEpochVisitsEveryRowOnceInAnOrderOfItsOwn) {
  constexpr int64_t kEpochs = 5;
  for (const int64_t rows : {1, 2, 3, 97, 1000}) {
    const std::vector<Row> drawn = run(rows, kEpochs * rows);
    EXPECT_TRUE(std::is_sorted(drawn.begin(), drawn.end(),
                               [](const Row& a, const Row& b) { return a.epoch < b.epoch; }));
    std::vector<int64_t> all(static_cast<size_t>(rows));
    std::iota(all.begin(), all.end(), 0);
    std::set<std::vector<int64_t>> orders;
    for (int64_t epoch = 0; epoch < kEpochs; ++epoch) {
      std::vector<int64_t> order = epoch_of(drawn, epoch);
      orders.insert(order);
      std::sort(order.begin(), order.end());
      EXPECT_EQ(order, all) << "epoch " << epoch << " of " << rows << " rows";
    }
    if (rows >= 97) {
      EXPECT_EQ(orders.size(), static_cast<size_t>(kEpochs));
    }
  }
}

// A position that was stored means the same rows in a later version.
TEST(Sampler, TheOrderIsFixed) {
  const std::vector<Row> drawn = run(10, 20);
  EXPECT_THAT(epoch_of(drawn, 0), ElementsAre(8, 0, 4, 2, 7, 9, 6, 5, 1, 3));
  EXPECT_THAT(epoch_of(drawn, 1), ElementsAre(1, 6, 3, 4, 2, 8, 0, 7, 9, 5));
}

TEST(Sampler, TheOrderIsTheSeeds) {
  EXPECT_EQ(run(100, 300), run(100, 300));
  EXPECT_NE(run(100, 300, 0, 6), run(100, 300, 0, 7));
}

// Every row comes in every place about as often: with 6 rows and 6000 epochs 1000 times, give or
// take 6 standard deviations of 29.
TEST(Sampler, NoPlaceFavoursARow) {
  constexpr int64_t kRows = 6;
  constexpr int64_t kEpochs = 6000;
  const std::vector<Row> drawn = run(kRows, kRows * kEpochs);
  std::vector<int64_t> counts(kRows * kRows, 0);
  for (size_t i = 0; i < drawn.size(); ++i) {
    ++counts[(i % kRows) * kRows + static_cast<size_t>(drawn[i].index)];
  }
  for (const int64_t count : counts) EXPECT_NEAR(count, kEpochs / kRows, 6 * 29);
}

struct Division {
  int ranks;
  int64_t rows, batch;
};
class SamplerRanks : public testing::TestWithParam<Division> {};

// What all ranks draw, in turns of a batch, is what one rank draws alone.
TEST_P(SamplerRanks, DivideTheOrderOfOne) {
  const auto [ranks, rows, batch] = GetParam();
  constexpr int kTurns = 40;
  std::vector<Row> together;
  std::vector<Sampler> samplers;
  for (int rank = 0; rank < ranks; ++rank) {
    samplers.emplace_back(rows, kSeed, World{.rank = rank, .size = ranks});
  }
  for (int turn = 0; turn < kTurns; ++turn) {
    for (Sampler& sampler : samplers) {
      std::vector<Row> part(static_cast<size_t>(batch));
      sampler.next(part);
      together.insert(together.end(), part.begin(), part.end());
      EXPECT_EQ(sampler.position(), static_cast<int64_t>(turn + 1) * ranks * batch);
    }
  }
  EXPECT_GT(together.back().epoch, 1) << "batches go from one epoch into the next";
  EXPECT_EQ(together, run(rows, static_cast<int64_t>(together.size())));
}

INSTANTIATE_TEST_SUITE_P(Worlds, SamplerRanks,
                         testing::Values(Division{1, 10, 3}, Division{2, 10, 3}, Division{3, 10, 3},
                                         Division{4, 10, 3},
                                         Division{4, 24, 2},  // whole turns an epoch
                                         Division{1, 3, 10},  // fewer rows than a batch holds
                                         Division{3, 2, 5}, Division{2, 1, 4}),
                         [](const auto& test) {
                           return std::to_string(test.param.ranks) + "Ranks" +
                                  std::to_string(test.param.rows) + "RowsBy" +
                                  std::to_string(test.param.batch);
                         });

TEST(Sampler, GoesOnFromAnyPosition) {
  const std::vector<Row> drawn = run(10, 50);
  for (const int64_t position : {0, 1, 9, 10, 11, 29, 45}) {
    const std::vector<Row> rest = run(10, 50 - position, position);
    EXPECT_TRUE(std::equal(rest.begin(), rest.end(), drawn.begin() + position)) << position;
  }
  Sampler sampler(10, kSeed);
  std::vector<Row> batch(4), again(4);
  sampler.seek(38);
  sampler.next(batch);
  EXPECT_EQ(sampler.position(), 42);
  sampler.seek(38);  // back into an epoch that it has left
  sampler.next(again);
  EXPECT_EQ(again, batch);
}

TEST(Sampler, WhatCannotBeSampledIsRefused) {
  EXPECT_THAT([] { Sampler(0, kSeed); },
              ThrowsMessage<ConfigError>("a data set of 0 rows cannot be sampled: give from 1 to "
                                         "4294967296"));
  EXPECT_THAT([] { Sampler(Sampler::kMaxRows + 1, kSeed); },
              ThrowsMessage<ConfigError>(HasSubstr("4294967297 rows cannot be sampled")));
  EXPECT_THAT(
      [] { Sampler(5, kSeed).seek(-1); },
      ThrowsMessage<ConfigError>("a sampler cannot go to position -1: positions start at 0"));
}

TEST(Below, CoversItsRange) {
  constexpr std::array<uint32_t, 4> kNone = {}, kAll = {~0u, ~0u, ~0u, ~0u};
  for (const int64_t bound : {int64_t{1}, int64_t{7}, int64_t{1} << 24, (int64_t{1} << 24) + 1,
                              (int64_t{1} << 32) - 1, int64_t{1} << 32}) {
    EXPECT_EQ(engine::below(kNone, bound), 0);
    EXPECT_EQ(engine::below(kAll, bound), bound - 1);
  }
  // Of 3 * 2^30 numbers and 32 bits, every third would be twice as likely as the others.
  constexpr int64_t kLarge = 3 * (int64_t{1} << 30);
  EXPECT_EQ(engine::below({1, 0, 0, 0}, kLarge), 0);
  EXPECT_EQ(engine::below({1, 1u << 31, 0, 0}, kLarge), 1);
}

}  // namespace
}  // namespace strata
