// Rows of training text are a pure function of (seed, index), and baselines are what they say.
#include "strata/text_corpus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>

#include "kernels/ops/random.h"
#include "strata/error.h"

namespace strata {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::ThrowsMessage;

class TextCorpusTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ =
        fs::temp_directory_path() / ("strata_text_" + std::to_string(getpid()) + "_" +
                                     testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::create_directories(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  fs::path write(const std::string& name, const std::string& text) const {
    const fs::path path = root_ / name;
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }

  // Text whose windows all differ: numbers, one after the other.
  TextCorpus numbers(int64_t sequence, int count = 2000) const {
    std::string text;
    for (int i = 0; i < count; ++i) text += std::to_string(i) + " ";
    return TextCorpus::from_path(write("numbers.txt", text), sequence);
  }

  fs::path root_;
};

std::string text_of(const std::vector<uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }

TEST_F(TextCorpusTest, JoinsFilesInOrderOfPathEachContentOnce) {
  write("b/two.txt", "22222222222222222222");
  write("a/one.txt", "11111111111111111111");
  write("z.txt", "11111111111111111111");
  write("empty.txt", "");
  fs::create_symlink(root_ / "b/two.txt", root_ / "c.txt");
  fs::create_directory_symlink(root_, root_ / "a" / "loop");
  fs::create_symlink("nowhere", root_ / "broken.txt");
  const TextCorpus corpus = TextCorpus::from_path(root_, 3);
  EXPECT_EQ(text_of(corpus.train()) + text_of(corpus.validation()),
            "11111111111111111111\n22222222222222222222");
  EXPECT_EQ(corpus.validation().size(), 4u);
  EXPECT_EQ(corpus.files(), 2);
  EXPECT_EQ(corpus.duplicate_files(), 2);
}

TEST_F(TextCorpusTest, ADirectorysSymbolicLinkIsFollowed) {
  write("real/text.txt", std::string(100, 'x'));
  fs::create_directory_symlink(root_ / "real", root_ / "link");
  EXPECT_EQ(TextCorpus::from_path(root_ / "link", 4).files(), 1);
}

TEST_F(TextCorpusTest, WhatIsMissingOrTooShortIsRefused) {
  EXPECT_THAT([] { TextCorpus::from_path("/no/such/text", 8); },
              ThrowsMessage<ConfigError>("/no/such/text: there is no such file or directory: name "
                                         "text files to train on"));
  const std::string path = write("short.txt", std::string(89, 'x'));
  EXPECT_THAT([&] { TextCorpus::from_path(path, 8); },
              ThrowsMessage<ConfigError>(
                  path + ": 89 bytes of text are too few for sequences of 8 tokens with a tenth "
                         "held out: give at least 90 bytes, or a shorter sequence"));
  EXPECT_NO_THROW(TextCorpus::from_path(write("enough.txt", std::string(90, 'x')), 8));
}

TEST_F(TextCorpusTest, ARowIsTheTextAndItsTargetsTheTextOneOn) {
  const TextCorpus corpus = numbers(16);
  const std::string train = text_of(corpus.train());
  TextSampler sampler(corpus, 16, 1);
  OwnedBatch batch{{3, 16}, {}, {}};
  sampler.next(batch);
  for (int64_t row = 0; row < 3; ++row) {
    const std::string tokens(batch.tokens.begin() + row * 16, batch.tokens.begin() + row * 16 + 16);
    const std::string targets(batch.targets.begin() + row * 16,
                              batch.targets.begin() + row * 16 + 16);
    const size_t at = train.find(tokens);
    ASSERT_NE(at, std::string::npos);
    EXPECT_EQ(targets, train.substr(at + 1, 16));
  }
}

// The first token's position in the text of each of `count` rows from `first` on.
std::vector<int64_t> starts(const TextCorpus& corpus, int64_t sequence, uint64_t seed,
                            int64_t first, int64_t count, int64_t rows_a_batch) {
  const std::string train = text_of(corpus.train());
  TextSampler sampler(corpus, sequence, seed);
  sampler.seek(first);
  OwnedBatch batch{{rows_a_batch, sequence}, {}, {}};
  std::vector<int64_t> result;
  while (static_cast<int64_t>(result.size()) < count) {
    sampler.next(batch);
    for (int64_t row = 0; row < rows_a_batch; ++row) {
      const auto begin = batch.tokens.begin() + row * sequence;
      result.push_back(static_cast<int64_t>(train.find(std::string(begin, begin + sequence))));
    }
  }
  result.resize(static_cast<size_t>(count));
  return result;
}

TEST_F(TextCorpusTest, AnEpochVisitsEachWindowOnceFromItsOwnOffset) {
  constexpr int64_t kSequence = 32;
  const TextCorpus corpus = numbers(kSequence);
  const int64_t rows = TextSampler(corpus, kSequence, 7).rows_per_epoch();
  const auto train_size = static_cast<int64_t>(corpus.train().size());
  std::set<int64_t> offsets;
  for (int64_t epoch = 0; epoch < 4; ++epoch) {
    const auto order = starts(corpus, kSequence, 7, epoch * rows, rows, 1);
    const std::set<int64_t> visited(order.begin(), order.end());
    const int64_t offset = *visited.begin();
    EXPECT_EQ(static_cast<int64_t>(visited.size()), rows);
    EXPECT_LT(offset, kSequence);
    EXPECT_EQ(*visited.rbegin(), offset + (rows - 1) * kSequence);
    EXPECT_LT(*visited.rbegin() + kSequence, train_size);
    EXPECT_FALSE(std::is_sorted(order.begin(), order.end()));
    offsets.insert(offset);
  }
  EXPECT_GT(offsets.size(), 1u);
}

TEST_F(TextCorpusTest, ARowIsAPureFunctionOfSeedAndIndex) {
  const TextCorpus corpus = numbers(32);
  const auto run = starts(corpus, 32, 3, 0, 900, 1);
  EXPECT_EQ(starts(corpus, 32, 3, 0, 900, 4), run);
  for (const int64_t position : {1, 250, 260, 899}) {
    EXPECT_EQ(starts(corpus, 32, 3, position, 1, 1)[0], run[static_cast<size_t>(position)]);
  }
  EXPECT_NE(starts(corpus, 32, 4, 0, 900, 1), run);
}

// The rows that all ranks draw together are those that one rank draws alone, in turns of a batch.
TEST_F(TextCorpusTest, RanksDivideTheRowsOfOneRank) {
  const TextCorpus corpus = numbers(32);
  constexpr int64_t kRows = 5;
  const auto draw = [&](TextSampler& sampler) {
    OwnedBatch batch{{kRows, 32}, {}, {}};
    sampler.next(batch);
    return batch.tokens;
  };
  for (const int ranks : {2, 3}) {
    TextSampler alone(corpus, 32, 3);
    std::vector<TextSampler> samplers;
    for (int rank = 0; rank < ranks; ++rank) {
      samplers.emplace_back(corpus, 32, 3, World{.rank = rank, .size = ranks});
    }
    for (int turn = 0; turn < 200; ++turn) {  // several epochs
      for (TextSampler& sampler : samplers) EXPECT_EQ(draw(sampler), draw(alone)) << turn;
    }
    EXPECT_GT(alone.position(), 2 * alone.rows_per_epoch());
  }
}

TEST_F(TextCorpusTest, RanksDivideTheValidationRows) {
  const TextCorpus corpus = numbers(16);
  const BatchShape shape = {7, 16};
  const auto all = validation_batches(corpus, shape);
  for (const int ranks : {2, 3, 4}) {
    std::vector<std::vector<OwnedBatch>> parts;
    for (int rank = 0; rank < ranks; ++rank) {
      parts.push_back(validation_batches(corpus, shape, World{.rank = rank, .size = ranks}));
      EXPECT_EQ(parts.back().size(), parts.front().size());
    }
    for (size_t i = 0; i < parts[0].size() * parts.size(); ++i) {
      const OwnedBatch& part = parts[i % parts.size()][i / parts.size()];
      if (i < all.size()) {
        EXPECT_EQ(part.tokens, all[i].tokens);
        EXPECT_EQ(part.targets, all[i].targets);
      } else {
        EXPECT_EQ(part.counted_targets(), 0);
      }
    }
  }
}

TEST_F(TextCorpusTest, SeekingBackReproduces) {
  const TextCorpus corpus = numbers(32);
  TextSampler sampler(corpus, 32, 3);
  OwnedBatch first{{4, 32}, {}, {}}, again{{4, 32}, {}, {}};
  sampler.seek(sampler.rows_per_epoch() - 2);
  const int64_t position = sampler.position();
  sampler.next(first);
  EXPECT_EQ(sampler.position(), position + 4);
  sampler.next(again);
  EXPECT_NE(again.tokens, first.tokens);
  sampler.seek(position);
  sampler.next(again);
  EXPECT_EQ(again.tokens, first.tokens);
  EXPECT_EQ(again.targets, first.targets);
}

TEST_F(TextCorpusTest, ASamplerOfLongerSequencesThanTheTextIsRefused) {
  const TextCorpus corpus = numbers(8, 100);
  EXPECT_THAT([&] { TextSampler(corpus, 1000, 1); },
              ThrowsMessage<ConfigError>(HasSubstr("give at least 2000 bytes")));
}

TEST_F(TextCorpusTest, ValidationRowsAreConsecutiveAndTheRestIsNotCounted) {
  const TextCorpus corpus = numbers(16);
  const std::string held_out = text_of(corpus.validation());
  const auto windows = (static_cast<int64_t>(held_out.size()) - 1) / 16;
  const auto batches = validation_batches(corpus, {7, 16});
  ASSERT_EQ(static_cast<int64_t>(batches.size()), (windows + 6) / 7);
  ASSERT_NE(windows % 7, 0) << "the case of a last batch that is not full";
  std::string tokens, targets;
  int64_t counted = 0;
  for (const OwnedBatch& batch : batches) {
    EXPECT_EQ(batch.shape, (BatchShape{7, 16}));
    tokens.append(batch.tokens.begin(), batch.tokens.end());
    targets.append(batch.targets.begin(), batch.targets.end());
    counted += batch.counted_targets();
  }
  const auto size = static_cast<size_t>(windows * 16);
  EXPECT_EQ(counted, windows * 16);
  EXPECT_EQ(tokens.substr(0, size), held_out.substr(0, size));
  EXPECT_EQ(targets.substr(0, size), held_out.substr(1, size));
}

TEST_F(TextCorpusTest, BaselinesOfRandomBytesAreTheirEntropy) {
  // Two symbols, independent, p = 1/4: no order of model can know more than the first.
  std::string text;
  for (uint64_t i = 0; i < 40000; ++i) text += ops::Philox{1}(i, 0)[0] % 4 == 0 ? 'a' : 'b';
  const NgramBaselines baselines =
      ngram_baselines(TextCorpus::from_path(write("random.txt", text), 8));
  const double entropy = -(0.25 * std::log(0.25) + 0.75 * std::log(0.75));
  // The held-out 4,000 bytes' own mean differs by its standard error, 0.0075; this is 4 of them.
  EXPECT_NEAR(baselines.unigram, entropy, 0.03);
  EXPECT_NEAR(baselines.bigram, baselines.unigram, 0.003);
  EXPECT_NEAR(baselines.trigram, baselines.unigram, 0.003);
}

TEST_F(TextCorpusTest, EachOrderKnowsWhatItCanKnow) {
  // "aabb" repeated: one letter says nothing, one before it says nothing, two before it say all.
  std::string text;
  for (int i = 0; i < 5000; ++i) text += "aabb";
  const NgramBaselines baselines =
      ngram_baselines(TextCorpus::from_path(write("cycle.txt", text), 8));
  EXPECT_NEAR(baselines.unigram, std::log(2.0), 1e-3);
  EXPECT_NEAR(baselines.bigram, std::log(2.0), 1e-3);
  EXPECT_LT(baselines.trigram, 0.01);
}

TEST_F(TextCorpusTest, BytesNeverSeenInTrainingCostALotAndNotInfinity) {
  const NgramBaselines baselines = ngram_baselines(
      TextCorpus::from_path(write("new.txt", std::string(900, 'a') + std::string(100, 'z')), 8));
  EXPECT_GT(baselines.unigram, 2.0);
  EXPECT_LT(baselines.unigram, 20.0);
  EXPECT_TRUE(std::isfinite(baselines.trigram));
}

}  // namespace
}  // namespace strata
