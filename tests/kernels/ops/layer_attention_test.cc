#include <gtest/gtest.h>

#include <limits>
#include <string_view>
#include <tuple>

#include "kernels/ops/optimizer_ops.h"
#include "tests/kernels/ops/dropout_reference.h"
#include "tests/kernels/ops/layer_testing.h"
#include "tests/kernels/ops/optimizer_testing.h"

namespace strata::ops {
namespace {

struct AttentionCase {
  int64_t batch, sequence, heads, head_channels;
  double dropout = 0;
  int64_t first_head = 0;  // that dropout counts

  DropoutSite site() const {
    return {.probability = dropout, .key = {.seed = 3, .step = 9, .micro_batch = 1, .layer = 4}};
  }
};

// One head of the reference: q, k, v and out as functions of (position, channel).
class HeadReference {
 public:
  HeadReference(const AttentionCase& shape, DType dtype, const Tensor& qkv, int64_t batch,
                int64_t head)
      : shape_(shape),
        dtype_(dtype),
        qkv_(qkv),
        batch_(batch),
        head_(head),
        dropout_(shape.site()) {
    for (int64_t query = 0; query < shape.sequence; ++query) add_row(query);
  }

  int64_t packed(int64_t part, int64_t position, int64_t channel) const {
    const int64_t channels = shape_.heads * shape_.head_channels;
    return ((batch_ * shape_.sequence + position) * 3 + part) * channels +
           head_ * shape_.head_channels + channel;
  }
  int64_t plain(int64_t position, int64_t channel) const {
    return ((batch_ * shape_.sequence + position) * shape_.heads + head_) * shape_.head_channels +
           channel;
  }

  void forward(Reals& out) const {
    for (int64_t query = 0; query < shape_.sequence; ++query) {
      for (int64_t c = 0; c < shape_.head_channels; ++c) {
        Sum sum;
        for (int64_t key = 0; key <= query; ++key) {
          sum.add(dropped(query, key).rounded(dtype_) * v(key, c));
        }
        out[static_cast<size_t>(plain(query, c))] = sum.total();
      }
    }
  }

  // `out` is forward's, as stored.
  void backward(const Reals& out, const Tensor& out_grad, Reals& qkv_grad) const {
    const int64_t channels = shape_.head_channels;
    std::vector<Sum> sums(static_cast<size_t>(3 * shape_.sequence * channels));
    const auto sum = [&](int64_t part, int64_t position, int64_t c) -> Sum& {
      return sums[static_cast<size_t>((part * shape_.sequence + position) * channels + c)];
    };
    for (int64_t query = 0; query < shape_.sequence; ++query) {
      Sum dot;
      for (int64_t c = 0; c < channels; ++c) {
        const Real stored = out[static_cast<size_t>(plain(query, c))].rounded(dtype_);
        dot.add(stored * out_grad[plain(query, c)]);
      }
      for (int64_t key = 0; key <= query; ++key) {
        Sum p_grad;
        for (int64_t c = 0; c < channels; ++c) {
          p_grad.add(Real(out_grad[plain(query, c)]) * v(key, c));
        }
        const Real through = p_grad.total() * factor(query, key);
        const Real score_grad =
            (probability(query, key) * (through - dot.total()) * scale()).rounded(dtype_);
        for (int64_t c = 0; c < channels; ++c) {
          sum(0, query, c).add(score_grad * qkv_[packed(1, key, c)]);
          sum(1, key, c).add(score_grad * qkv_[packed(0, query, c)]);
          sum(2, key, c).add(dropped(query, key).rounded(dtype_) * out_grad[plain(query, c)]);
        }
      }
    }
    for (int64_t part = 0; part < 3; ++part) {
      for (int64_t position = 0; position < shape_.sequence; ++position) {
        for (int64_t c = 0; c < channels; ++c) {
          qkv_grad[static_cast<size_t>(packed(part, position, c))] = sum(part, position, c).total();
        }
      }
    }
  }

 private:
  Real scale() const { return 1 / std::sqrt(static_cast<double>(shape_.head_channels)); }
  Real v(int64_t key, int64_t c) const { return qkv_[packed(2, key, c)]; }
  const Real& probability(int64_t query, int64_t key) const {
    return probabilities_[static_cast<size_t>(query * shape_.sequence + key)];
  }

  Real factor(int64_t query, int64_t key) const {
    return Real(dropout_.of_attention(batch_, shape_.first_head + head_, query, key)).rounded();
  }
  // A probability as dropout leaves it.
  Real dropped(int64_t query, int64_t key) const {
    return probability(query, key) * factor(query, key);
  }

  void add_row(int64_t query) {
    Reals scores;
    double max = -std::numeric_limits<double>::infinity();
    for (int64_t key = 0; key <= query; ++key) {
      Sum sum;
      for (int64_t c = 0; c < shape_.head_channels; ++c) {
        sum.add(qkv_[packed(0, query, c)] * qkv_[packed(1, key, c)]);
      }
      scores.push_back(sum.total() * scale());
      max = std::max(max, scores.back().value);
    }
    Sum total;
    for (Real& score : scores) {
      score = exp(score - max);
      total.add(score);
    }
    for (int64_t key = 0; key < shape_.sequence; ++key) {
      const Real weight = key <= query ? scores[static_cast<size_t>(key)] : Real(0);
      probabilities_.push_back(weight / total.total());
    }
  }

  const AttentionCase shape_;
  const DType dtype_;
  const Tensor& qkv_;
  const int64_t batch_, head_;
  const DropoutReference dropout_;
  Reals probabilities_;  // (query, key)
};

struct AttentionInputs {
  AttentionInputs(DType dtype, const AttentionCase& c)
      : shape(c),
        qkv(Tensor::normal(dtype, {c.batch, c.sequence, 3 * c.heads * c.head_channels}, 1)),
        out_grad(Tensor::normal(dtype, {c.batch, c.sequence, c.heads * c.head_channels}, 2)),
        out(dtype, {c.batch, c.sequence, c.heads * c.head_channels}),
        qkv_grad(dtype, {c.batch, c.sequence, 3 * c.heads * c.head_channels}) {}

  void run(Bench& bench) {
    const Shape& dims = qkv.view().shape;
    const Tensor saved =
        Tensor::scratch(bench->attention_saved_bytes(qkv.dtype(), dims, shape.heads));
    const Tensor workspace =
        Tensor::scratch(bench->attention_workspace_bytes(qkv.dtype(), dims, shape.heads));
    bench->attention_forward({.qkv = qkv,
                              .out = out,
                              .saved = saved,
                              .workspace = workspace,
                              .heads = shape.heads,
                              .first_head = shape.first_head,
                              .dropout = shape.site()});
    bench->attention_backward({.qkv = qkv,
                               .out = out,
                               .out_grad = out_grad,
                               .saved = saved,
                               .qkv_grad = qkv_grad,
                               .workspace = workspace,
                               .heads = shape.heads,
                               .first_head = shape.first_head,
                               .dropout = shape.site()});
    bench.finish();
  }

  AttentionCase shape;
  Tensor qkv, out_grad, out, qkv_grad;
};

class LayerAttentionTest : public ::testing::TestWithParam<std::tuple<DType, AttentionCase>> {
 protected:
  DType dtype() const { return std::get<0>(GetParam()); }
  AttentionCase shape() const { return std::get<1>(GetParam()); }
};

TEST_P(LayerAttentionTest, MatchesDoublePrecision) {
  Bench bench;
  AttentionInputs in(dtype(), shape());
  in.run(bench);
  Reals out(static_cast<size_t>(in.out.numel()));
  Reals qkv_grad(static_cast<size_t>(in.qkv.numel()));
  for (int64_t batch = 0; batch < shape().batch; ++batch) {
    for (int64_t head = 0; head < shape().heads; ++head) {
      const HeadReference reference(shape(), dtype(), in.qkv, batch, head);
      reference.forward(out);
      reference.backward(out, in.out_grad, qkv_grad);
    }
  }
  expect_close(in.out, out, "out");
  expect_close(in.qkv_grad, qkv_grad, "qkv_grad");
}

TEST_P(LayerAttentionTest, BitsDoNotDependOnThreads) {
  AttentionInputs one(dtype(), shape()), three(dtype(), shape());
  Bench alone(1), team(3);
  one.run(alone);
  three.run(team);
  EXPECT_TRUE(one.out.same_bits(three.out));
  EXPECT_TRUE(one.qkv_grad.same_bits(three.qkv_grad));
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, LayerAttentionTest,
    ::testing::Combine(::testing::ValuesIn(kLayerDTypes),
                       ::testing::Values(AttentionCase{1, 1, 1, 8}, AttentionCase{2, 17, 3, 13},
                                         AttentionCase{1, 64, 2, 16}, AttentionCase{1, 150, 1, 64},
                                         AttentionCase{1, 257, 2, 8}, AttentionCase{1, 70, 2, 136},
                                         AttentionCase{1, 90, 1, 100, 0.1},
                                         AttentionCase{2, 17, 3, 13, 0.1},
                                         AttentionCase{1, 150, 2, 16, 0.4},
                                         AttentionCase{2, 40, 2, 8, 0.4, 3})));

TEST(LayerAttentionGradient, MatchesFiniteDifferences) {
  for (const double dropout : {0.0, 0.3}) {
    Bench bench;
    AttentionInputs in(DType::fp32, {1, 20, 2, 8, dropout});
    in.run(bench);
    const Tensor gradient = in.qkv_grad.copy();
    expect_matches_differences(in.qkv, gradient, in.out, in.out_grad, [&] { in.run(bench); });
  }
}

// Of the optimizer's kernels and dropout's; the products and softmax stay where they are.
TEST(LayerAttentionDropout, IsTheSameOnEveryInstructionSet) {
  if (kind_under_test() != DeviceKind::host) GTEST_SKIP() << "about the host";
  const AttentionCase shape = {2, 90, 2, 16, 0.2};
  AttentionInputs expected(DType::bf16, shape);
  Bench bench;
  expected.run(bench);
  for (const std::string_view isa : available_isas()) {
    const ForcedIsa forced(isa);
    AttentionInputs in(DType::bf16, shape);
    in.run(bench);
    EXPECT_TRUE(in.out.same_bits(expected.out)) << isa;
    EXPECT_TRUE(in.qkv_grad.same_bits(expected.qkv_grad)) << isa;
  }
}

TEST(LayerAttention, LaterTokensDoNotShow) {
  for (const DType dtype : kLayerDTypes) {
    Bench bench;
    AttentionInputs in(dtype, {1, 140, 1, 16});
    in.run(bench);
    const Tensor before = in.out.copy();
    constexpr int64_t kChanged = 129;
    for (int64_t i = kChanged * 3 * 16; i < in.qkv.numel(); ++i) in.qkv.set(i, 3 - in.qkv[i]);
    in.run(bench);
    for (int64_t i = 0; i < kChanged * 16; ++i) ASSERT_EQ(in.out[i], before[i]) << i;
    EXPECT_NE(in.out[kChanged * 16], before[kChanged * 16]);
  }
}

TEST(LayerAttention, NaNIsNotHidden) {
  for (const DType dtype : kLayerDTypes) {
    Bench bench;
    AttentionInputs in(dtype, {1, 20, 1, 16});
    in.qkv.set(5 * 48 + 16, std::numeric_limits<double>::quiet_NaN());  // a channel of key 5
    in.run(bench);
    for (int64_t position = 0; position < 20; ++position) {
      EXPECT_EQ(std::isnan(in.out[position * 16]), position >= 5) << name(dtype) << position;
    }
  }
}

}  // namespace
}  // namespace strata::ops
