#include <fmt/format.h>

#include <algorithm>

#include "engine/data/below.h"
#include "kernels/ops/random.h"
#include "strata/error.h"
#include "strata/text_corpus.h"

namespace strata {
namespace {

// An epoch's windows: as many as fit behind the largest offset.
int64_t windows_of(const TextCorpus& corpus, int64_t sequence) {
  const auto bytes = static_cast<int64_t>(corpus.train().size());
  const int64_t windows = (bytes - sequence) / sequence;
  if (windows >= 1) return windows;
  throw ConfigError(fmt::format(
      "{} bytes of training text are too few for sequences of {} tokens: give at least {} bytes, "
      "or a shorter sequence",
      bytes, sequence, 2 * sequence));
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
      order_(windows_of(corpus, sequence), seed, world) {}

void TextSampler::next(OwnedBatch& batch) {
  batch.tokens.resize(static_cast<size_t>(batch.shape.tokens()));
  batch.targets.resize(static_cast<size_t>(batch.shape.tokens()));
  rows_.resize(static_cast<size_t>(batch.shape.batch));
  order_.next(rows_);
  for (size_t row = 0; row < rows_.size(); ++row) {
    const int64_t begin = offset(rows_[row].epoch) + rows_[row].index * sequence_;
    batch.set_row(static_cast<int64_t>(row), corpus_.train().data() + begin);
  }
}

// The shuffle of an epoch draws from counters above 0.
int64_t TextSampler::offset(int64_t epoch) const {
  return engine::below(ops::Philox{seed_}(0, static_cast<uint64_t>(epoch)), sequence_);
}

}  // namespace strata
