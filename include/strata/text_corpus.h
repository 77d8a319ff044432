// Text files as byte tokens, for training and evaluation.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "strata/batch.h"
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
// window once, in an order shuffled by seed. Every epoch has as many windows as fit behind the
// largest offset, so row i of the run is a pure function of (seed, i), the same at every world
// size; the position is one number, so it can be stored and restored. Ranks take turns: of each
// world_size batches, a rank gets the one that is its own.
class TextSampler {
 public:
  // `corpus` must outlive the sampler. Throws ConfigError when its training part is too short.
  TextSampler(const TextCorpus& corpus, int64_t sequence, uint64_t seed, const World& world = {});

  // Fills `batch` (whose shape says how many rows) with this rank's rows of those from position()
  // on, and advances by all ranks'.
  void next(OwnedBatch& batch);

  int64_t position() const { return position_; }
  void seek(int64_t position) { position_ = position; }
  int64_t rows_per_epoch() const { return windows_; }

 private:
  void start_epoch(int64_t epoch);

  const TextCorpus& corpus_;
  const int64_t sequence_;
  const uint64_t seed_;
  const int rank_;
  const int ranks_;
  const int64_t windows_;  // an epoch's
  int64_t position_ = 0;
  int64_t epoch_ = -1;          // that offset_ and order_ are for
  int64_t offset_ = 0;          // of window 0, in bytes
  std::vector<int32_t> order_;  // windows as they are visited
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
