// Text files as byte tokens, for training and evaluation.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "strata/batch.h"
#include "strata/sampler.h"
#include "strata/world.h"

namespace strata {

// The bytes of a file or of a directory's regular files (recursively, symbolic links followed,
// sorted by path; of files with identical content only the first counts), joined by one newline.
// The last tenth is held out for validation. Immutable.
class TextCorpus {
 public:
  static constexpr int64_t kVocab = 256;

  // Throws ConfigError naming the path when there is nothing to read or too little of it to cut one
  // window of `sequence` + 1 bytes from either part.
  static TextCorpus from_path(const std::string& path, int64_t sequence);

  const std::vector<uint8_t>& train() const { return train_; }
  const std::vector<uint8_t>& validation() const { return validation_; }
  int64_t files() const { return files_; }
  int64_t duplicate_files() const { return duplicates_; }
  // Of all bytes, to tell whether ranks read the same text.
  uint64_t hash() const;

 private:
  std::vector<uint8_t> train_;
  std::vector<uint8_t> validation_;
  int64_t files_ = 0;
  int64_t duplicates_ = 0;
};

// Owns the tokens of one micro-batch.
struct OwnedBatch {
  BatchShape shape;
  std::vector<int32_t> tokens;
  std::vector<int32_t> targets;

  // Tokens 0, targets -1.
  static OwnedBatch empty(BatchShape shape);
  // Fills a row from a window of sequence + 1 bytes.
  void set_row(int64_t row, const uint8_t* window);

  Batch view() const { return {shape, tokens, targets}; }
  // Targets that count in the loss: the weight of this batch's mean loss in a mean over batches.
  int64_t counted_targets() const;
};

// Draws training rows. The training bytes are cut into windows of sequence + 1 bytes, stride
// `sequence`, from an offset below `sequence` that changes with each epoch; an epoch visits each
// window once, in a Sampler's order. Every epoch has as many windows as fit behind the largest
// offset, so row i of the run is a pure function of (seed, i), the same at every world size.
class TextSampler {
 public:
  // `corpus` must outlive the sampler. Throws ConfigError when its training part is too short.
  TextSampler(const TextCorpus& corpus, int64_t sequence, uint64_t seed, const World& world = {});

  // Fills `batch` (whose shape says how many rows) with this rank's rows of those from position()
  // on, and advances by all ranks'.
  void next(OwnedBatch& batch);

  int64_t position() const { return order_.position(); }
  void seek(int64_t position) { order_.seek(position); }
  int64_t rows_per_epoch() const { return order_.rows_per_epoch(); }

 private:
  int64_t offset(int64_t epoch) const;  // of window 0, in bytes

  const TextCorpus& corpus_;
  const int64_t sequence_;
  const uint64_t seed_;
  Sampler order_;                   // of windows
  std::vector<Sampler::Row> rows_;  // next()'s own
};

// Cross-entropy in nats per byte on the held-out bytes of interpolated byte n-gram models fitted to
// the training bytes, n = 1, 2, 3, with the smoothing that suits the held-out bytes best: a bar
// that errs in the n-grams' favour.
struct NgramBaselines {
  double unigram = 0;
  double bigram = 0;
  double trigram = 0;
};
NgramBaselines ngram_baselines(const TextCorpus& corpus);

// A rank's validation windows: all are consecutive, stride `sequence`, a last partial one dropped,
// and ranks take turns at batches of them. Every rank gets as many batches; rows for which there is
// no window have targets of -1.
std::vector<OwnedBatch> validation_batches(const TextCorpus& corpus, BatchShape shape,
                                           const World& world = {});

}  // namespace strata
