// The order in which training visits the rows of a data set.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "strata/world.h"

namespace strata {

// Draws row numbers for a data set of any kind. Each epoch visits every row once, in an order
// shuffled by seed and epoch; epochs follow each other without a gap, so that a batch may hold the
// end of one and the beginning of the next, or several of a small set. The i-th row of a run is a
// pure function of (rows, seed, i), the same at every world size. The position, an i, is all that
// has to be stored to go on from there. Ranks take turns: of each world.size batches, a rank gets
// the one that is its own.
//
//   strata::Sampler sampler(data.size(), config.seed, world);
//   std::vector<strata::Sampler::Row> rows(config.micro_batch);
//   sampler.next(rows);
//   for (const auto& row : rows) fill(batch, data[row.index]);
//
// Not thread-safe. Keeps the order of one epoch, 4 bytes a row.
class Sampler {
 public:
  struct Row {
    int64_t index = 0;  // below rows_per_epoch()
    int64_t epoch = 0;  // from 0 on

    bool operator==(const Row&) const = default;
  };

  // Throws ConfigError for no rows, or more than kMaxRows.
  Sampler(int64_t rows, uint64_t seed, const World& world = {});
  static constexpr int64_t kMaxRows = int64_t{1} << 32;

  // This rank's part of the rows from position() on: a batch. Advances by all ranks' batches, which
  // are as long.
  void next(std::span<Row> batch);

  int64_t position() const { return position_; }
  // Throws ConfigError for a negative one.
  void seek(int64_t position);
  int64_t rows_per_epoch() const { return rows_; }

 private:
  void start_epoch(int64_t epoch);

  const int64_t rows_;
  const uint64_t seed_;
  const int rank_;
  const int ranks_;
  int64_t position_ = 0;
  int64_t epoch_ = -1;           // that order_ is of
  std::vector<uint32_t> order_;  // row numbers as they are visited
};

}  // namespace strata
