#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "kernels/ops/random.h"
#include "strata/error.h"
#include "strata/text_corpus.h"

namespace strata {
namespace {

// A number in [0, bound) from 32 random bits, for bounds so far below 2^32 that its bias is
// nothing.
int64_t below(uint32_t bits, int64_t bound) {
  return static_cast<int64_t>((uint64_t{bits} * static_cast<uint64_t>(bound)) >> 32);
}

}  // namespace

OwnedBatch OwnedBatch::empty(BatchShape shape) {
  const auto tokens = static_cast<size_t>(shape.tokens());
  return {shape, std::vector<int32_t>(tokens, 0), std::vector<int32_t>(tokens, -1)};
}

void OwnedBatch::set_row(int64_t row, const uint8_t* window) {
  const int64_t at = row * shape.sequence;
  std::copy(window, window + shape.sequence, tokens.begin() + at);
  std::copy(window + 1, window + 1 + shape.sequence, targets.begin() + at);
}

int64_t OwnedBatch::counted_targets() const {
  return std::count_if(targets.begin(), targets.end(), [](int32_t target) { return target >= 0; });
}

TextSampler::TextSampler(const TextCorpus& corpus, int64_t sequence, uint64_t seed,
                         const World& world)
    : corpus_(corpus),
      sequence_(sequence),
      seed_(seed),
      rank_(world.rank),
      ranks_(world.size),
      windows_((static_cast<int64_t>(corpus.train().size()) - sequence) / sequence) {
  if (windows_ < 1) {
    throw ConfigError(fmt::format(
        "{} bytes of training text are too few for sequences of {} tokens: give at least {} bytes, "
        "or a shorter sequence",
        corpus.train().size(), sequence, 2 * sequence));
  }
}

void TextSampler::start_epoch(int64_t epoch) {
  const ops::Philox philox{seed_};
  const auto stream = static_cast<uint64_t>(epoch);
  offset_ = below(philox(0, stream)[0], sequence_);
  order_.resize(static_cast<size_t>(windows_));
  std::iota(order_.begin(), order_.end(), 0);
  for (int64_t i = windows_ - 1; i > 0; --i) {  // Fisher and Yates
    const int64_t j = below(philox(static_cast<uint64_t>(i), stream)[0], i + 1);
    std::swap(order_[static_cast<size_t>(i)], order_[static_cast<size_t>(j)]);
  }
  epoch_ = epoch;
}

void TextSampler::next(OwnedBatch& batch) {
  batch.tokens.resize(static_cast<size_t>(batch.shape.tokens()));
  batch.targets.resize(static_cast<size_t>(batch.shape.tokens()));
  const int64_t first = position_ + rank_ * batch.shape.batch;
  for (int64_t row = 0; row < batch.shape.batch; ++row) {
    const int64_t epoch = (first + row) / windows_;
    if (epoch != epoch_) start_epoch(epoch);
    const int64_t window = order_[static_cast<size_t>((first + row) % windows_)];
    batch.set_row(row, corpus_.train().data() + offset_ + window * sequence_);
  }
  position_ += ranks_ * batch.shape.batch;
}

}  // namespace strata
