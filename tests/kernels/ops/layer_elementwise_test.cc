#include <gtest/gtest.h>

#include <limits>
#include <stdexcept>
#include <tuple>

#include "tests/kernels/ops/layer_testing.h"

namespace strata::ops {
namespace {

class LayerElementwiseTest : public ::testing::TestWithParam<std::tuple<DType, int64_t>> {
 protected:
  DType dtype() const { return std::get<0>(GetParam()); }
  int64_t numel() const { return std::get<1>(GetParam()); }

  Bench bench_;
};

// sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3), and 2 u'.
Real gate(const Real& x) {
  const Real two_k = 2 * std::sqrt(2 / M_PI);
  return Real(1) / (Real(1) + exp(Real(0) - two_k * (x + Real(0.044715) * x * x * x)));
}
Real gate_slope(const Real& x) {
  return Real(2 * std::sqrt(2 / M_PI)) * (Real(1) + Real(3 * 0.044715) * x * x);
}

TEST_P(LayerElementwiseTest, GeluMatchesDoublePrecision) {
  const Tensor x = Tensor::normal(dtype(), {numel()}, 1, 0, 3);
  const Tensor out(dtype(), {numel()});
  bench_->gelu_forward({x, out});
  bench_.finish();
  Reals want;
  for (int64_t i = 0; i < numel(); ++i) want.push_back(Real(x[i]) * gate(x[i]));
  expect_close(out, want, "out");
}

TEST_P(LayerElementwiseTest, GeluBackwardMatchesDoublePrecisionInPlace) {
  const Tensor x = Tensor::normal(dtype(), {numel()}, 1, 0, 3);
  const Tensor out_grad = Tensor::normal(dtype(), {numel()}, 2);
  const Tensor x_grad(dtype(), {numel()});
  const Tensor in_place = out_grad.copy();
  bench_->gelu_backward({x, out_grad, x_grad});
  bench_->gelu_backward({x, in_place, in_place});
  bench_.finish();
  Reals want;
  for (int64_t i = 0; i < numel(); ++i) {
    const Real s = gate(x[i]);
    const Real slope = s + Real(x[i]) * s * (Real(1) - s) * gate_slope(x[i]);
    want.push_back(Real(out_grad[i]) * slope);
  }
  expect_close(x_grad, want, "x_grad");
  EXPECT_TRUE(x_grad.same_bits(in_place));
}

TEST_P(LayerElementwiseTest, AddMatchesDoublePrecisionInPlaceToo) {
  const Tensor x = Tensor::normal(dtype(), {numel()}, 1);
  const Tensor y = Tensor::normal(dtype(), {numel()}, 2);
  const Tensor out(dtype(), {numel()});
  const Tensor into_x = x.copy(), into_y = y.copy();
  bench_->add({.x = x, .y = y, .out = out});
  bench_->add({.x = into_x, .y = y, .out = into_x});
  bench_->add({.x = x, .y = into_y, .out = into_y});
  bench_.finish();
  Reals want;
  for (int64_t i = 0; i < numel(); ++i) want.push_back(Real(x[i]) + Real(y[i]));
  expect_close(out, want, "out");
  EXPECT_TRUE(into_x.same_bits(out));
  EXPECT_TRUE(into_y.same_bits(out));
}

TEST_P(LayerElementwiseTest, AddWithoutASecondAddendCopiesEveryBit) {
  Tensor x = Tensor::normal(dtype(), {numel()}, 1);
  x.set(numel() - 1, std::numeric_limits<double>::quiet_NaN());
  const Tensor out(dtype(), {numel()}), in_place = x.copy();
  bench_->add({.x = x, .out = out});
  bench_->add({.x = in_place, .out = in_place});
  bench_.finish();
  EXPECT_TRUE(out.same_bits(x));
  EXPECT_TRUE(in_place.same_bits(x));
}

INSTANTIATE_TEST_SUITE_P(Sizes, LayerElementwiseTest,
                         ::testing::Combine(::testing::ValuesIn(kLayerDTypes),
                                            ::testing::Values(1, 15, 384, 5003)));

// A kernel is no task that a poisoned queue skips by itself.
TEST(LayerElementwise, APoisonedQueueSkipsWhatComesLater) {
  const auto queue = make_queue_under_test(1);
  const auto ops = make_ops_under_test(*queue, 1);
  const Tensor x = Tensor::normal(DType::fp32, {64}, 1);
  const Tensor out = Tensor::normal(DType::fp32, {64}, 2);
  const Tensor before = out.copy();
  queue->run([] { throw std::runtime_error("broken"); });
  EXPECT_THROW(queue->synchronize(), std::runtime_error);
  ops->gelu_forward({x, out});
  EXPECT_THROW(queue->synchronize(), std::runtime_error);
  EXPECT_TRUE(out.same_bits(before));
}

TEST(LayerGelu, MatchesFiniteDifferences) {
  Bench bench;
  Tensor x = Tensor::normal(DType::fp32, {200}, 1, 0, 2);
  const Tensor out(DType::fp32, {200});
  const Tensor out_grad = Tensor::normal(DType::fp32, {200}, 2);
  const Tensor x_grad(DType::fp32, {200});
  bench->gelu_backward({x, out_grad, x_grad});
  bench.finish();
  expect_matches_differences(x, x_grad, out, out_grad, [&] {
    bench->gelu_forward({x, out});
    bench.finish();
  });
}

TEST(LayerGelu, IsZeroOrTheIdentityFarOut) {
  Bench bench;
  Tensor x(DType::fp32, {4});
  const Tensor slope(DType::fp32, {4});
  const Tensor out(DType::fp32, {4});
  Tensor one(DType::fp32, {4});
  const double values[] = {-1e4, -20, 20, 1e4};
  for (int64_t i = 0; i < 4; ++i) {
    x.set(i, values[i]);
    one.set(i, 1);
  }
  bench->gelu_forward({x, out});
  bench->gelu_backward({x, one, slope});
  bench.finish();
  for (int64_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(out[i], std::max(values[i], 0.0), 1e-30) << values[i];
    EXPECT_NEAR(slope[i], values[i] > 0 ? 1 : 0, 1e-6) << values[i];
  }
}

TEST(LayerGelu, KeepsNaN) {
  Bench bench;
  for (const DType dtype : kLayerDTypes) {
    Tensor x = Tensor::normal(dtype, {20}, 1);
    x.set(3, std::numeric_limits<double>::quiet_NaN());
    const Tensor out(dtype, {20});
    bench->gelu_forward({x, out});
    bench.finish();
    for (int64_t i = 0; i < 20; ++i) EXPECT_EQ(std::isnan(out[i]), i == 3) << i;
  }
}

}  // namespace
}  // namespace strata::ops
