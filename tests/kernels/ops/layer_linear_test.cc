#include <gtest/gtest.h>

#include <cstdlib>
#include <limits>
#include <string>
#include <tuple>

#include "strata/error.h"
#include "tests/kernels/ops/layer_testing.h"

namespace strata::ops {
namespace {

struct LinearCase {
  int64_t rows, in, out;
  bool transposed;
};

// Row-major (rows, columns) or its transpose.
struct MatrixOf {
  const Tensor& tensor;
  int64_t columns;
  bool transposed = false;
  double at(int64_t i, int64_t j, int64_t rows) const {
    return transposed ? tensor[j * rows + i] : tensor[i * columns + j];
  }
};

// (m, k) . (k, n)
Reals product(const MatrixOf& a, const MatrixOf& b, int64_t m, int64_t k, int64_t n) {
  Reals result;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      Sum sum;
      // The product of two 16-bit numbers is exact in fp32, and fp32 products are fused.
      for (int64_t l = 0; l < k; ++l) sum.add(a.at(i, l, m) * b.at(l, j, k));
      result.push_back(sum.total());
    }
  }
  return result;
}

class LayerLinearTest : public ::testing::TestWithParam<std::tuple<DType, LinearCase>> {
 protected:
  DType dtype() const { return std::get<0>(GetParam()); }
  LinearCase shape() const { return std::get<1>(GetParam()); }
  Shape weight_shape() const {
    return shape().transposed ? Shape{shape().out, shape().in} : Shape{shape().in, shape().out};
  }
  Tensor workspace() {
    return Tensor::scratch(bench_->linear_workspace_bytes(dtype(), shape().rows, shape().in,
                                                          shape().out, shape().transposed));
  }

  LayerOps::Linear forward_op(const TensorView& out, const Tensor& scratch) const {
    return {.x = x_,
            .weight = weight_,
            .out = out,
            .weight_transposed = shape().transposed,
            .workspace = scratch};
  }
  LayerOps::LinearBackward backward_op(const Tensor& scratch) const {
    return {.x = x_,
            .weight = weight_,
            .out_grad = out_grad_,
            .weight_transposed = shape().transposed,
            .workspace = scratch};
  }
  MatrixOf weight_matrix() const { return {weight_, shape().out, shape().transposed}; }

  // out, without bias or residual.
  Reals reference_out() const {
    return product({x_, shape().in}, weight_matrix(), shape().rows, shape().in, shape().out);
  }
  Reals reference_x_grad() const {
    return product({out_grad_, shape().out}, {weight_, shape().in, !shape().transposed},
                   shape().rows, shape().out, shape().in);
  }
  Reals reference_weight_grad() const {
    const auto [rows, in, out, transposed] = shape();
    const MatrixOf x_t{x_, rows, true}, x{x_, in}, dy_t{out_grad_, rows, true}, dy{out_grad_, out};
    return transposed ? product(dy_t, x, out, rows, in) : product(x_t, dy, in, rows, out);
  }
  Reals reference_bias_grad() const {
    std::vector<Sum> sums(static_cast<size_t>(shape().out));
    for (int64_t i = 0; i < out_grad_.numel(); ++i) {
      sums[static_cast<size_t>(i % shape().out)].add(out_grad_[i]);
    }
    Reals result;
    for (const Sum& sum : sums) result.push_back(sum.total());
    return result;
  }

  Bench bench_;
  Tensor x_ = Tensor::normal(dtype(), {shape().rows, shape().in}, 1);
  Tensor weight_ = Tensor::normal(dtype(), weight_shape(), 2);
  Tensor bias_ = Tensor::normal(dtype(), {shape().out}, 3);
  Tensor residual_ = Tensor::normal(dtype(), {shape().rows, shape().out}, 4);
  Tensor out_grad_ = Tensor::normal(dtype(), {shape().rows, shape().out}, 5);
};

TEST_P(LayerLinearTest, ForwardMatchesDoublePrecision) {
  const Reals plain = reference_out();
  const Tensor scratch = workspace();
  enum class Residual { none, apart, in_place };
  for (const bool with_bias : {false, true}) {
    for (const Residual residual : {Residual::none, Residual::apart, Residual::in_place}) {
      const Tensor out = residual == Residual::in_place
                             ? residual_.copy()
                             : Tensor(dtype(), {shape().rows, shape().out});
      LayerOps::Linear op = forward_op(out, scratch);
      if (with_bias) op.bias = bias_;
      if (residual == Residual::apart) op.residual = residual_;
      if (residual == Residual::in_place) op.residual = out;
      bench_->linear_forward(op);
      bench_.finish();
      Reals want = plain;
      for (size_t i = 0; i < want.size(); ++i) {
        const auto at = static_cast<int64_t>(i);
        if (with_bias) want[i] = want[i] + bias_[at % shape().out];
        if (residual != Residual::none) want[i] = want[i] + residual_[at];
      }
      expect_close(out, want,
                   "bias " + std::to_string(with_bias) + ", residual " +
                       std::to_string(static_cast<int>(residual)));
    }
  }
}

TEST_P(LayerLinearTest, BackwardMatchesDoublePrecision) {
  const Tensor scratch = workspace();
  const Tensor x_grad(dtype(), {shape().rows, shape().in});
  const Tensor weight_grad(dtype(), weight_shape());
  const Tensor bias_grad(dtype(), {shape().out});
  LayerOps::LinearBackward op = backward_op(scratch);
  op.x_grad = x_grad;
  op.weight_grad = {weight_grad};
  op.bias_grad = {bias_grad};
  bench_->linear_backward(op);
  bench_.finish();
  expect_close(x_grad, reference_x_grad(), "x_grad");
  expect_close(weight_grad, reference_weight_grad(), "weight_grad");
  expect_close(bias_grad, reference_bias_grad(), "bias_grad");
}

TEST_P(LayerLinearTest, BackwardAccumulatesWhatIsWanted) {
  const Tensor scratch = workspace();
  const Tensor weight_before = Tensor::normal(dtype(), weight_shape(), 6);
  const Tensor bias_before = Tensor::normal(dtype(), {shape().out}, 7);
  const Tensor weight_grad = weight_before.copy();
  const Tensor bias_grad = bias_before.copy();
  LayerOps::LinearBackward op = backward_op(scratch);
  op.weight_grad = {weight_grad, true};
  bench_->linear_backward(op);
  op.weight_grad = {};
  op.bias_grad = {bias_grad, true};
  bench_->linear_backward(op);
  bench_.finish();
  expect_close(weight_grad, accumulated(reference_weight_grad(), weight_before), "weight_grad");
  expect_close(bias_grad, accumulated(reference_bias_grad(), bias_before), "bias_grad");
}

TEST_P(LayerLinearTest, SameBitsEveryTime) {
  const Tensor scratch = workspace();
  const auto run = [&](Bench& bench) {
    std::vector<Tensor> results;
    results.emplace_back(dtype(), Shape{shape().rows, shape().out});
    results.emplace_back(dtype(), Shape{shape().rows, shape().in});
    results.emplace_back(dtype(), weight_shape());
    results.emplace_back(dtype(), Shape{shape().out});
    LayerOps::Linear forward = forward_op(results[0], scratch);
    forward.bias = bias_;
    LayerOps::LinearBackward backward = backward_op(scratch);
    backward.x_grad = results[1];
    backward.weight_grad = {results[2]};
    backward.bias_grad = {results[3]};
    bench->linear_forward(forward);
    bench->linear_backward(backward);
    bench.finish();
    return results;
  };
  Bench other;
  const std::vector<Tensor> first = run(bench_);
  const std::vector<Tensor> second = run(bench_);
  const std::vector<Tensor> third = run(other);
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_TRUE(first[i].same_bits(second[i])) << i;
    EXPECT_TRUE(first[i].same_bits(third[i])) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, LayerLinearTest,
                         ::testing::Combine(::testing::ValuesIn(kLayerDTypes),
                                            ::testing::Values(LinearCase{1, 37, 1, false},
                                                              LinearCase{1, 16, 257, true},
                                                              LinearCase{33, 37, 257, false},
                                                              LinearCase{130, 50, 257, true},
                                                              LinearCase{200, 64, 96, false})));

TEST(LayerLinearGradient, MatchesFiniteDifferences) {
  Bench bench;
  constexpr int64_t kRows = 6, kIn = 20, kOut = 12;
  Tensor x = Tensor::normal(DType::fp32, {kRows, kIn}, 1);
  Tensor weight = Tensor::normal(DType::fp32, {kIn, kOut}, 2);
  Tensor bias = Tensor::normal(DType::fp32, {kOut}, 3);
  const Tensor out(DType::fp32, {kRows, kOut});
  const Tensor out_grad = Tensor::normal(DType::fp32, {kRows, kOut}, 4);
  const Tensor x_grad(DType::fp32, {kRows, kIn});
  const Tensor weight_grad(DType::fp32, {kIn, kOut});
  const Tensor bias_grad(DType::fp32, {kOut});
  const Tensor scratch =
      Tensor::scratch(bench->linear_workspace_bytes(DType::fp32, kRows, kIn, kOut, false));
  const auto forward = [&] {
    bench->linear_forward(
        {.x = x, .weight = weight, .bias = bias, .out = out, .workspace = scratch});
    bench.finish();
  };
  bench->linear_backward({.x = x,
                          .weight = weight,
                          .out_grad = out_grad,
                          .x_grad = x_grad,
                          .weight_grad = {weight_grad},
                          .bias_grad = {bias_grad},
                          .workspace = scratch});
  bench.finish();
  expect_matches_differences(x, x_grad, out, out_grad, forward);
  expect_matches_differences(weight, weight_grad, out, out_grad, forward);
  expect_matches_differences(bias, bias_grad, out, out_grad, forward);
}

// CTest runs this binary a second time with oneDNN held to AVX2 (DNNL_MAX_CPU_ISA), where every
// product of bf16 is widened, as those of fp16 always are.
TEST(LayerLinear, MultipliesInFp32WhatTheCpuDoesNot) {
  if (kind_under_test() != DeviceKind::host) GTEST_SKIP() << "about the host";
  const char* isa = std::getenv("DNNL_MAX_CPU_ISA");
  Bench bench;
  EXPECT_EQ(bench->product_dtype(DType::fp32), DType::fp32);
  EXPECT_EQ(bench->product_dtype(DType::fp16), DType::fp32);
  if (isa == nullptr || std::string(isa) != "AVX2") GTEST_SKIP() << "oneDNN chooses";
  EXPECT_EQ(bench->product_dtype(DType::bf16), DType::fp32);
}

// What a loss scale that is too large does: it must show in every gradient behind it.
TEST(LayerLinear, WhatFp16CannotHoldIsInfiniteAndStaysSo) {
  Bench bench;
  constexpr int64_t kRows = 3, kIn = 20, kOut = 2;
  const Tensor x = Tensor::normal(DType::fp16, {kRows, kIn}, 1, 3, 0.1);
  const Tensor weight = Tensor::normal(DType::fp16, {kIn, kOut}, 2, 2, 0.1);
  const Tensor out_grad = Tensor::normal(DType::fp16, {kRows, kOut}, 3, 60000, 1000);
  const Tensor x_grad(DType::fp16, {kRows, kIn});
  const Tensor weight_grad(DType::fp16, {kIn, kOut});
  const Tensor bias_grad(DType::fp16, {kOut});
  const Tensor scratch =
      Tensor::scratch(bench->linear_workspace_bytes(DType::fp16, kRows, kIn, kOut, false));
  const auto backward = [&](const Tensor& from) {
    bench->linear_backward({.x = x,
                            .weight = weight,
                            .out_grad = from,
                            .x_grad = x_grad,
                            .weight_grad = {weight_grad},
                            .bias_grad = {bias_grad},
                            .workspace = scratch});
    bench.finish();
    for (const Tensor* gradient : {&x_grad, &weight_grad, &bias_grad}) {
      for (int64_t i = 0; i < gradient->numel(); ++i) {
        EXPECT_EQ((*gradient)[i], std::numeric_limits<double>::infinity()) << i;
      }
    }
  };
  backward(out_grad);  // finite, with sums beyond 65504
  Tensor infinite = out_grad.copy();
  for (int64_t i = 0; i < infinite.numel(); ++i) {
    infinite.set(i, std::numeric_limits<double>::infinity());
  }
  backward(infinite);
}

TEST(LayerLinear, RefusesViewsThatDoNotFit) {
  Bench bench;
  const Tensor x = Tensor::normal(DType::fp32, {4, 8}, 1);
  const Tensor weight = Tensor::normal(DType::fp32, {8, 6}, 2);
  const Tensor narrow = Tensor::normal(DType::bf16, {8, 6}, 2);
  const Tensor out(DType::fp32, {4, 6});
  const Tensor wide(DType::fp32, {4, 7});
  const Tensor scratch =
      Tensor::scratch(bench->linear_workspace_bytes(DType::fp32, 4, 8, 6, false));
  EXPECT_THROW(bench->linear_forward({.x = x, .weight = weight, .out = wide, .workspace = scratch}),
               Error);
  EXPECT_THROW(bench->linear_forward({.x = x, .weight = narrow, .out = out, .workspace = scratch}),
               Error);
  EXPECT_THROW(bench->linear_forward({.x = x, .weight = weight, .out = out, .workspace = {}}),
               Error);
  bench->linear_forward({.x = x, .weight = weight, .out = out, .workspace = scratch});
  EXPECT_NO_THROW(bench.finish());
}

}  // namespace
}  // namespace strata::ops
