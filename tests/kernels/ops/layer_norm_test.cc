#include <gtest/gtest.h>

#include <tuple>

#include "tests/kernels/ops/layer_testing.h"

namespace strata::ops {
namespace {

struct NormReference {
  Reals out, x_grad, weight_grad, bias_grad;
};

// out_grad and residual_grad may be null.
NormReference reference(const Tensor& x, const Tensor& weight, const Tensor& bias,
                        const Tensor& out_grad, const Tensor* residual_grad) {
  const int64_t channels = weight.numel();
  const int64_t rows = x.numel() / channels;
  NormReference result;
  std::vector<Sum> weight_sums(static_cast<size_t>(channels));
  std::vector<Sum> bias_sums(static_cast<size_t>(channels));
  const Real count = static_cast<double>(channels);
  for (int64_t row = 0; row < rows; ++row) {
    const auto at = [&](int64_t c) { return row * channels + c; };
    Sum sum, squares, g_sum, gn_sum;
    for (int64_t c = 0; c < channels; ++c) sum.add(x[at(c)]);
    const Real mean = sum.total() / count;
    for (int64_t c = 0; c < channels; ++c) {
      const Real centered = Real(x[at(c)]) - mean;
      squares.add(centered * centered);
    }
    const Real variance = squares.total() / count + Real(1e-5f);
    const double root = std::sqrt(variance.value);
    const Real rstd = Real{1 / root, variance.error / (2 * root * variance.value)}.rounded();
    Reals normal;
    for (int64_t c = 0; c < channels; ++c) {
      const auto i = static_cast<size_t>(c);
      normal.push_back((Real(x[at(c)]) - mean) * rstd);
      result.out.push_back(normal[i] * weight[c] + bias[c]);
      const Real dy = out_grad[at(c)];
      g_sum.add(dy * weight[c]);
      gn_sum.add(dy * weight[c] * normal[i]);
      weight_sums[i].add(dy * normal[i]);
      bias_sums[i].add(dy);
    }
    const Real mean_g = g_sum.total() / count;
    const Real mean_gn = gn_sum.total() / count;
    for (int64_t c = 0; c < channels; ++c) {
      const Real g = Real(out_grad[at(c)]) * weight[c];
      Real dx = rstd * (g - mean_g - normal[static_cast<size_t>(c)] * mean_gn);
      if (residual_grad != nullptr) dx = dx + (*residual_grad)[at(c)];
      result.x_grad.push_back(dx);
    }
  }
  for (const Sum& sum : weight_sums) result.weight_grad.push_back(sum.total());
  for (const Sum& sum : bias_sums) result.bias_grad.push_back(sum.total());
  return result;
}

struct NormInputs {
  NormInputs(DType dtype, int64_t rows, int64_t channels)
      : x(Tensor::normal(dtype, {rows, channels}, 1, 0.5, 2)),
        weight(Tensor::normal(dtype, {channels}, 2, 1, 0.3)),
        bias(Tensor::normal(dtype, {channels}, 3)),
        out_grad(Tensor::normal(dtype, {rows, channels}, 4)),
        out(dtype, {rows, channels}),
        x_grad(dtype, {rows, channels}),
        mean(DType::fp32, {rows}),
        rstd(DType::fp32, {rows}) {}

  void forward(Bench& bench) {
    bench->layer_norm_forward(
        {.x = x, .weight = weight, .bias = bias, .out = out, .mean = mean, .rstd = rstd});
    bench.finish();
  }
  void backward(Bench& bench, const TensorView& residual, const GradOutput& weight_grad,
                const GradOutput& bias_grad) {
    const int64_t rows = mean.numel();
    const Tensor workspace =
        Tensor::scratch(bench->layer_norm_workspace_bytes(rows, weight.numel()));
    bench->layer_norm_backward({.x = x,
                                .weight = weight,
                                .mean = mean,
                                .rstd = rstd,
                                .out_grad = out_grad,
                                .x_grad = x_grad,
                                .residual_grad = residual,
                                .weight_grad = weight_grad,
                                .bias_grad = bias_grad,
                                .workspace = workspace});
    bench.finish();
  }

  Tensor x, weight, bias, out_grad, out, x_grad, mean, rstd;
};

class LayerNormTest
    : public ::testing::TestWithParam<std::tuple<DType, std::pair<int64_t, int64_t>>> {
 protected:
  DType dtype() const { return std::get<0>(GetParam()); }
  int64_t rows() const { return std::get<1>(GetParam()).first; }
  int64_t channels() const { return std::get<1>(GetParam()).second; }

  Bench bench_;
};

TEST_P(LayerNormTest, MatchesDoublePrecision) {
  NormInputs in(dtype(), rows(), channels());
  const Tensor weight_grad(dtype(), {channels()});
  const Tensor bias_grad(dtype(), {channels()});
  in.forward(bench_);
  in.backward(bench_, {}, {weight_grad}, {bias_grad});
  const NormReference want = reference(in.x, in.weight, in.bias, in.out_grad, nullptr);
  expect_close(in.out, want.out, "out");
  expect_close(in.x_grad, want.x_grad, "x_grad");
  expect_close(weight_grad, want.weight_grad, "weight_grad");
  expect_close(bias_grad, want.bias_grad, "bias_grad");
}

TEST_P(LayerNormTest, AccumulatesAndAddsTheResidualInPlace) {
  NormInputs in(dtype(), rows(), channels());
  const Tensor residual = Tensor::normal(dtype(), {rows(), channels()}, 5);
  const Tensor before = Tensor::normal(dtype(), {channels()}, 6);
  const Tensor weight_grad = before.copy();
  const Tensor bias_grad = before.copy();
  in.forward(bench_);
  std::memcpy(in.x_grad.as<char>(), residual.as<char>(), residual.view().bytes());
  in.backward(bench_, in.x_grad, {weight_grad, true}, {bias_grad, true});
  const NormReference want = reference(in.x, in.weight, in.bias, in.out_grad, &residual);
  expect_close(in.x_grad, want.x_grad, "x_grad");
  expect_close(weight_grad, accumulated(want.weight_grad, before), "weight_grad");
  expect_close(bias_grad, accumulated(want.bias_grad, before), "bias_grad");
}

TEST_P(LayerNormTest, BitsDoNotDependOnThreads) {
  NormInputs one(dtype(), rows(), channels());
  NormInputs three(dtype(), rows(), channels());
  const Tensor grads[] = {Tensor(dtype(), {channels()}), Tensor(dtype(), {channels()}),
                          Tensor(dtype(), {channels()}), Tensor(dtype(), {channels()})};
  Bench alone(1), team(3);
  one.forward(alone);
  one.backward(alone, {}, {grads[0]}, {grads[1]});
  three.forward(team);
  three.backward(team, {}, {grads[2]}, {grads[3]});
  EXPECT_TRUE(one.out.same_bits(three.out));
  EXPECT_TRUE(one.x_grad.same_bits(three.x_grad));
  EXPECT_TRUE(grads[0].same_bits(grads[2]));
  EXPECT_TRUE(grads[1].same_bits(grads[3]));
}

INSTANTIATE_TEST_SUITE_P(Shapes, LayerNormTest,
                         ::testing::Combine(::testing::ValuesIn(kLayerDTypes),
                                            ::testing::Values(std::pair(1, 384), std::pair(7, 37),
                                                              std::pair(130, 48),
                                                              std::pair(300, 129))));

TEST(LayerNormGradient, MatchesFiniteDifferences) {
  NormInputs in(DType::fp32, 5, 40);
  const Tensor weight_grad(DType::fp32, {40});
  const Tensor bias_grad(DType::fp32, {40});
  Bench bench;
  in.forward(bench);
  in.backward(bench, {}, {weight_grad}, {bias_grad});
  const auto forward = [&] { in.forward(bench); };
  expect_matches_differences(in.x, in.x_grad, in.out, in.out_grad, forward);
  expect_matches_differences(in.weight, weight_grad, in.out, in.out_grad, forward);
  expect_matches_differences(in.bias, bias_grad, in.out, in.out_grad, forward);
}

TEST(LayerNorm, KeepsWhatALargeMeanLeaves) {
  Bench bench;
  NormInputs in(DType::fp32, 3, 64);
  in.x = Tensor::normal(DType::fp32, {3, 64}, 7, 1000, 1);
  in.forward(bench);
  expect_close(in.out, reference(in.x, in.weight, in.bias, in.out_grad, nullptr).out, "out");
}

TEST(LayerNorm, LeavesUnwantedGradientsAlone) {
  Bench bench;
  NormInputs in(DType::bf16, 4, 16);
  in.forward(bench);
  in.backward(bench, {}, {}, {});
  expect_close(in.x_grad, reference(in.x, in.weight, in.bias, in.out_grad, nullptr).x_grad,
               "x_grad");
}

}  // namespace
}  // namespace strata::ops
