#include <gtest/gtest.h>

#include <tuple>

#include "strata/error.h"
#include "tests/kernels/ops/layer_testing.h"

namespace strata::ops {
namespace {

struct EmbeddingCase {
  int64_t batch, sequence, channels, vocab, positions;
};

class LayerEmbeddingTest : public ::testing::TestWithParam<std::tuple<DType, EmbeddingCase>> {
 protected:
  DType dtype() const { return std::get<0>(GetParam()); }
  EmbeddingCase shape() const { return std::get<1>(GetParam()); }
  int64_t rows() const { return shape().batch * shape().sequence; }

  // Gradients of the two tables, from zero.
  std::pair<Reals, Reals> reference_gradients() const {
    std::vector<Sum> tokens(static_cast<size_t>(shape().vocab * shape().channels));
    std::vector<Sum> positions(static_cast<size_t>(shape().positions * shape().channels));
    for (int64_t row = 0; row < rows(); ++row) {
      for (int64_t c = 0; c < shape().channels; ++c) {
        const Real grad = out_grad_[row * shape().channels + c];
        const auto id = static_cast<int64_t>(tokens_[row]);
        tokens[static_cast<size_t>(id * shape().channels + c)].add(grad);
        const int64_t position = row % shape().sequence;
        positions[static_cast<size_t>(position * shape().channels + c)].add(grad);
      }
    }
    std::pair<Reals, Reals> result;
    for (const Sum& sum : tokens) result.first.push_back(sum.total());
    for (const Sum& sum : positions) result.second.push_back(sum.total());
    return result;
  }

  Bench bench_;
  // Fewer tokens than the vocabulary has, so that some rows are not seen and some often.
  Tensor tokens_ = Tensor::ids({shape().batch, shape().sequence}, (shape().vocab + 1) / 2, 1);
  Tensor token_table_ = Tensor::normal(dtype(), {shape().vocab, shape().channels}, 2);
  Tensor position_table_ = Tensor::normal(dtype(), {shape().positions, shape().channels}, 3);
  Tensor out_grad_ = Tensor::normal(dtype(), {rows(), shape().channels}, 4);
};

TEST_P(LayerEmbeddingTest, ForwardMatchesDoublePrecision) {
  const Tensor with(dtype(), {rows(), shape().channels});
  const Tensor without(dtype(), {rows(), shape().channels});
  bench_->embedding_forward({tokens_, token_table_, position_table_, with});
  bench_->embedding_forward({tokens_, token_table_, {}, without});
  bench_.finish();
  Reals token_only, both;
  for (int64_t i = 0; i < with.numel(); ++i) {
    const int64_t row = i / shape().channels;
    const int64_t channel = i % shape().channels;
    const auto id = static_cast<int64_t>(tokens_[row]);
    token_only.push_back(token_table_[id * shape().channels + channel]);
    both.push_back(token_only.back() +
                   position_table_[row % shape().sequence * shape().channels + channel]);
  }
  expect_close(with, both, "with positions");
  expect_close(without, token_only, "without positions");
}

TEST_P(LayerEmbeddingTest, BackwardOverwritesEveryRow) {
  const Tensor token_grad(dtype(), {shape().vocab, shape().channels});
  const Tensor position_grad(dtype(), {shape().positions, shape().channels});
  bench_->embedding_backward({tokens_, out_grad_, {token_grad}, {position_grad}});
  bench_.finish();
  const auto [tokens, positions] = reference_gradients();
  expect_close(token_grad, tokens, "token table");
  expect_close(position_grad, positions, "position table");
}

TEST_P(LayerEmbeddingTest, BackwardAccumulates) {
  const Tensor token_grad = token_table_.copy();
  const Tensor position_grad = position_table_.copy();
  bench_->embedding_backward({tokens_, out_grad_, {token_grad, true}, {}});
  bench_->embedding_backward({tokens_, out_grad_, {}, {position_grad, true}});
  bench_.finish();
  const auto [tokens, positions] = reference_gradients();
  expect_close(token_grad, accumulated(tokens, token_table_), "token table");
  expect_close(position_grad, accumulated(positions, position_table_), "position table");
}

// Tables of a range of tokens each, forward added up and backward row by row, have the whole's
// bits.
TEST_P(LayerEmbeddingTest, RangesOfTokensAddUpToTheTable) {
  const int64_t vocab = shape().vocab, channels = shape().channels;
  const Tensor whole(dtype(), {rows(), channels});
  const Tensor whole_grad = token_table_.copy();
  bench_->embedding_forward({tokens_, token_table_, position_table_, whole});
  bench_->embedding_backward({tokens_, out_grad_, {whole_grad, true}, {}});
  for (const int64_t cuts : {1, 2, 3}) {
    const Tensor sum(dtype(), {rows(), channels});
    const Tensor grad = token_table_.copy();
    for (int64_t cut = 0; cut < cuts; ++cut) {
      const int64_t first = vocab * cut / cuts;
      const Shape rows_of_cut = {vocab * (cut + 1) / cuts - first, channels};
      const auto range = [&](const Tensor& table) {
        const size_t offset = static_cast<size_t>(first * channels) * size_bytes(dtype());
        return TensorView{table.as<std::byte>() + offset, dtype(), rows_of_cut};
      };
      bench_->embedding_forward({.tokens = tokens_,
                                 .token_table = range(token_table_),
                                 .position_table = cut == 0 ? position_table_ : TensorView{},
                                 .out = sum,
                                 .accumulate = cut > 0,
                                 .first_token = first,
                                 .vocab = vocab});
      bench_->embedding_backward({.tokens = tokens_,
                                  .out_grad = out_grad_,
                                  .token_table = {range(grad), true},
                                  .first_token = first,
                                  .vocab = vocab});
    }
    bench_.finish();
    EXPECT_TRUE(sum.same_bits(whole)) << cuts;
    EXPECT_TRUE(grad.same_bits(whole_grad)) << cuts;
  }
}

// Where a range has no row for a token, forward alone gives zeros.
TEST_P(LayerEmbeddingTest, TokensOfOtherRangesAreZero) {
  const Tensor out(dtype(), {rows(), shape().channels});
  bench_->embedding_forward({.tokens = tokens_,
                             .token_table = token_table_,
                             .out = out,
                             .first_token = shape().vocab,
                             .vocab = 2 * shape().vocab});
  bench_.finish();
  expect_close(out, Reals(static_cast<size_t>(out.numel())), "out");
}

TEST_P(LayerEmbeddingTest, BitsDoNotDependOnThreads) {
  const auto gradient = [&](int threads) {
    Bench bench(threads);
    Tensor token_grad(dtype(), {shape().vocab, shape().channels});
    bench->embedding_backward({tokens_, out_grad_, {token_grad}, {}});
    bench.finish();
    return token_grad;
  };
  EXPECT_TRUE(gradient(1).same_bits(gradient(3)));
}

INSTANTIATE_TEST_SUITE_P(Shapes, LayerEmbeddingTest,
                         ::testing::Combine(::testing::ValuesIn(kLayerDTypes),
                                            ::testing::Values(EmbeddingCase{1, 1, 16, 3, 1},
                                                              EmbeddingCase{3, 37, 37, 257, 40},
                                                              EmbeddingCase{2, 128, 300, 20,
                                                                            128})));

TEST(LayerEmbedding, TokensOutsideTheVocabularyFailTheWork) {
  for (const int32_t bad : {-1, 5}) {
    Bench bench;
    const Tensor tokens = Tensor::ids({1, 4}, 5, 1);
    tokens.as<int32_t>()[2] = bad;
    const Tensor table = Tensor::normal(DType::fp32, {5, 8}, 2);
    const Tensor out(DType::fp32, {4, 8});
    bench->embedding_forward({tokens, table, {}, out});
    EXPECT_THROW(bench.finish(), Error) << bad;
  }
}

// The vocabulary counts, not the range that the table holds.
TEST(LayerEmbedding, TokensOutsideTheVocabularyFailTheWorkOfEveryRange) {
  for (const int32_t token : {-1, 4, 5, 7, 8}) {
    Bench bench;
    const Tensor tokens = Tensor::ids({1, 1}, 1, 1);
    tokens.as<int32_t>()[0] = token;
    const Tensor table = Tensor::normal(DType::fp32, {2, 8}, 2);
    const Tensor out(DType::fp32, {1, 8});
    bench->embedding_forward(
        {.tokens = tokens, .token_table = table, .out = out, .first_token = 5, .vocab = 8});
    if (token >= 0 && token < 8) {
      EXPECT_NO_THROW(bench.finish()) << token;
    } else {
      EXPECT_THROW(bench.finish(), Error) << token;
    }
  }
}

}  // namespace
}  // namespace strata::ops
