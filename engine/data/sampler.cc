#include "strata/sampler.h"

#include <fmt/format.h>

#include <numeric>
#include <utility>

#include "engine/data/below.h"
#include "kernels/ops/random.h"
#include "strata/error.h"

namespace strata {

Sampler::Sampler(int64_t rows, uint64_t seed, const World& world)
    : rows_(rows), seed_(seed), rank_(world.rank), ranks_(world.size) {
  if (rows < 1 || rows > kMaxRows) {
    throw ConfigError(
        fmt::format("a data set of {} rows cannot be sampled: give from 1 to {}", rows, kMaxRows));
  }
}

void Sampler::start_epoch(int64_t epoch) {
  order_.resize(static_cast<size_t>(rows_));
  std::iota(order_.begin(), order_.end(), 0u);
  const ops::Philox philox{seed_};
  for (int64_t i = rows_ - 1; i > 0; --i) {  // Fisher and Yates
    const auto bits = philox(static_cast<uint64_t>(i), static_cast<uint64_t>(epoch));
    const int64_t j = engine::below(bits, i + 1);
    std::swap(order_[static_cast<size_t>(i)], order_[static_cast<size_t>(j)]);
  }
  epoch_ = epoch;
}

void Sampler::next(std::span<Row> batch) {
  const auto count = static_cast<int64_t>(batch.size());
  int64_t at = position_ + rank_ * count;
  for (Row& row : batch) {
    const int64_t epoch = at / rows_;
    if (epoch != epoch_) start_epoch(epoch);
    row = {order_[static_cast<size_t>(at % rows_)], epoch};
    ++at;
  }
  position_ += ranks_ * count;
}

void Sampler::seek(int64_t position) {
  if (position < 0) {
    throw ConfigError(
        fmt::format("a sampler cannot go to position {}: positions start at 0", position));
  }
  position_ = position;
}

}  // namespace strata
