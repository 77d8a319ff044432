#include <gtest/gtest.h>

#include <tuple>

#include "strata/error.h"
#include "tests/kernels/ops/layer_testing.h"

namespace strata::ops {
namespace {

struct RmsReference {
  Reals out, x_grad, weight_grad;
};

// residual_grad may be null.
RmsReference reference(const Tensor& x, const Tensor& weight, const Tensor& out_grad,
                       const Tensor* residual_grad) {
  const int64_t channels = weight.numel();
  RmsReference result;
  std::vector<Sum> weight_sums(static_cast<size_t>(channels));
  const Real count = static_cast<double>(channels);
  for (int64_t row = 0; row < x.numel() / channels; ++row) {
    const auto at = [&](int64_t c) { return row * channels + c; };
    Sum squares, gn_sum;
    for (int64_t c = 0; c < channels; ++c) squares.add(Real(x[at(c)]) * x[at(c)]);
    const Real mean_square = squares.total() / count + Real(1e-5f);
    const double root = std::sqrt(mean_square.value);
    const Real rstd = Real{1 / root, mean_square.error / (2 * root * mean_square.value)}.rounded();
    Reals normal;
    for (int64_t c = 0; c < channels; ++c) {
      const auto i = static_cast<size_t>(c);
      normal.push_back(Real(x[at(c)]) * rstd);
      result.out.push_back(normal[i] * weight[c]);
      gn_sum.add(Real(out_grad[at(c)]) * weight[c] * normal[i]);
      weight_sums[i].add(Real(out_grad[at(c)]) * normal[i]);
    }
    const Real mean_gn = gn_sum.total() / count;
    for (int64_t c = 0; c < channels; ++c) {
      const Real g = Real(out_grad[at(c)]) * weight[c];
      Real dx = rstd * (g - normal[static_cast<size_t>(c)] * mean_gn);
      if (residual_grad != nullptr) dx = dx + (*residual_grad)[at(c)];
      result.x_grad.push_back(dx);
    }
  }
  for (const Sum& sum : weight_sums) result.weight_grad.push_back(sum.total());
  return result;
}

struct RmsInputs {
  RmsInputs(DType dtype, int64_t rows, int64_t channels)
      : x(Tensor::normal(dtype, {rows, channels}, 1, 0.5, 2)),
        weight(Tensor::normal(dtype, {channels}, 2, 1, 0.3)),
        out_grad(Tensor::normal(dtype, {rows, channels}, 3)),
        out(dtype, {rows, channels}),
        x_grad(dtype, {rows, channels}),
        rstd(DType::fp32, {rows}) {}

  void forward(Bench& bench) {
    bench->rms_norm_forward({.x = x, .weight = weight, .out = out, .rstd = rstd});
    bench.finish();
  }
  void backward(Bench& bench, const TensorView& residual, const GradOutput& weight_grad) {
    const Tensor workspace =
        Tensor::scratch(bench->rms_norm_workspace_bytes(rstd.numel(), weight.numel()));
    bench->rms_norm_backward({.x = x,
                              .weight = weight,
                              .rstd = rstd,
                              .out_grad = out_grad,
                              .x_grad = x_grad,
                              .residual_grad = residual,
                              .weight_grad = weight_grad,
                              .workspace = workspace});
    bench.finish();
  }

  Tensor x, weight, out_grad, out, x_grad, rstd;
};

class LayerRmsNormTest
    : public ::testing::TestWithParam<std::tuple<DType, std::pair<int64_t, int64_t>>> {
 protected:
  DType dtype() const { return std::get<0>(GetParam()); }
  int64_t rows() const { return std::get<1>(GetParam()).first; }
  int64_t channels() const { return std::get<1>(GetParam()).second; }

  Bench bench_;
};

TEST_P(LayerRmsNormTest, MatchesDoublePrecision) {
  RmsInputs in(dtype(), rows(), channels());
  const Tensor weight_grad(dtype(), {channels()});
  in.forward(bench_);
  in.backward(bench_, {}, {weight_grad});
  const RmsReference want = reference(in.x, in.weight, in.out_grad, nullptr);
  expect_close(in.out, want.out, "out");
  expect_close(in.x_grad, want.x_grad, "x_grad");
  expect_close(weight_grad, want.weight_grad, "weight_grad");
}

TEST_P(LayerRmsNormTest, AccumulatesAndAddsTheResidualInPlace) {
  RmsInputs in(dtype(), rows(), channels());
  const Tensor residual = Tensor::normal(dtype(), {rows(), channels()}, 5);
  const Tensor before = Tensor::normal(dtype(), {channels()}, 6);
  const Tensor weight_grad = before.copy();
  in.forward(bench_);
  std::memcpy(in.x_grad.as<char>(), residual.as<char>(), residual.view().bytes());
  in.backward(bench_, in.x_grad, {weight_grad, true});
  const RmsReference want = reference(in.x, in.weight, in.out_grad, &residual);
  expect_close(in.x_grad, want.x_grad, "x_grad");
  expect_close(weight_grad, accumulated(want.weight_grad, before), "weight_grad");
}

TEST_P(LayerRmsNormTest, BitsDoNotDependOnThreads) {
  RmsInputs one(dtype(), rows(), channels());
  RmsInputs three(dtype(), rows(), channels());
  const Tensor grads[] = {Tensor(dtype(), {channels()}), Tensor(dtype(), {channels()})};
  Bench alone(1), team(3);
  one.forward(alone);
  one.backward(alone, {}, {grads[0]});
  three.forward(team);
  three.backward(team, {}, {grads[1]});
  EXPECT_TRUE(one.out.same_bits(three.out));
  EXPECT_TRUE(one.x_grad.same_bits(three.x_grad));
  EXPECT_TRUE(grads[0].same_bits(grads[1]));
}

INSTANTIATE_TEST_SUITE_P(Shapes, LayerRmsNormTest,
                         ::testing::Combine(::testing::ValuesIn(kLayerDTypes),
                                            ::testing::Values(std::pair(1, 384), std::pair(7, 37),
                                                              std::pair(130, 48),
                                                              std::pair(300, 129))));

TEST(LayerRmsNormGradient, MatchesFiniteDifferences) {
  RmsInputs in(DType::fp32, 5, 40);
  const Tensor weight_grad(DType::fp32, {40});
  Bench bench;
  in.forward(bench);
  in.backward(bench, {}, {weight_grad});
  const auto forward = [&] { in.forward(bench); };
  expect_matches_differences(in.x, in.x_grad, in.out, in.out_grad, forward);
  expect_matches_differences(in.weight, weight_grad, in.out, in.out_grad, forward);
}

TEST(LayerRmsNorm, LeavesUnwantedGradientsAlone) {
  Bench bench;
  RmsInputs in(DType::bf16, 4, 16);
  in.forward(bench);
  in.backward(bench, {}, {});
  expect_close(in.x_grad, reference(in.x, in.weight, in.out_grad, nullptr).x_grad, "x_grad");
}

TEST(LayerRmsNorm, ViewsThatDoNotFitAreRefused) {
  Bench bench;
  RmsInputs in(DType::fp32, 4, 16);
  const Tensor narrow(DType::fp32, {15}), short_rstd(DType::fp32, {3});
  LayerOps::RmsNorm op{.x = in.x, .weight = narrow, .out = in.out, .rstd = in.rstd};
  EXPECT_THROW(bench->rms_norm_forward(op), Error);
  op.weight = in.weight;
  op.rstd = short_rstd;
  EXPECT_THROW(bench->rms_norm_forward(op), Error);
  EXPECT_THROW(bench->rms_norm_backward({.x = in.x,
                                         .weight = in.weight,
                                         .rstd = in.rstd,
                                         .out_grad = in.out_grad,
                                         .x_grad = in.x_grad,
                                         .workspace = {}}),
               Error);
}

}  // namespace
}  // namespace strata::ops
