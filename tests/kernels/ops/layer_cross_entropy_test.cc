#include <gtest/gtest.h>

#include <limits>
#include <tuple>

#include "strata/error.h"
#include "tests/kernels/ops/layer_testing.h"

namespace strata::ops {
namespace {

struct LossReference {
  Real loss;
  Reals grad;
};

LossReference reference(const Tensor& logits, const Tensor& targets, double scale) {
  const int64_t rows = targets.numel();
  const int64_t vocab = logits.numel() / rows;
  double count = 0;
  for (int64_t row = 0; row < rows; ++row) count += targets[row] >= 0 ? 1 : 0;
  LossReference result;
  Sum losses;
  for (int64_t row = 0; row < rows; ++row) {
    const auto at = [&](int64_t c) { return logits[row * vocab + c]; };
    double max = at(0);
    for (int64_t c = 1; c < vocab; ++c) max = std::max(max, at(c));
    Sum sum;
    for (int64_t c = 0; c < vocab; ++c) sum.add(exp(Real(at(c)) - max));
    const Real total = sum.total();
    const auto target = static_cast<int64_t>(targets[row]);
    for (int64_t c = 0; c < vocab; ++c) {
      Real grad = exp(Real(at(c)) - max) * (Real(scale / count).rounded() / total);
      if (c == target) grad = grad - Real(scale / count).rounded();
      result.grad.push_back(target < 0 ? Real(0) : grad);
    }
    if (target >= 0) {
      losses.add({std::log(total.value) + max - at(target), total.error / total.value});
    }
  }
  const Real sum = losses.total();
  result.loss = {sum.value / count, sum.error / count};
  return result;
}

class LayerCrossEntropyTest
    : public ::testing::TestWithParam<std::tuple<DType, std::pair<int64_t, int64_t>>> {
 protected:
  DType dtype() const { return std::get<0>(GetParam()); }
  int64_t rows() const { return std::get<1>(GetParam()).first; }
  int64_t vocab() const { return std::get<1>(GetParam()).second; }

  double run(Bench& bench, const Tensor& logits, const TensorView& logits_grad, float scale) {
    const Tensor loss = Tensor::scratch(sizeof(double));
    const Tensor workspace = Tensor::scratch(bench->cross_entropy_workspace_bytes(rows()));
    bench->cross_entropy({.logits = logits,
                          .targets = targets_,
                          .logits_grad = logits_grad,
                          .loss = loss.as<double>(),
                          .loss_scale = scale,
                          .workspace = workspace});
    bench.finish();
    return *loss.as<double>();
  }

  struct InParts {
    double loss;
    Tensor grad;  // (N, V)
  };
  // With the logits in that many parts of nearly equal widths, and their gradients in place.
  InParts run_parts(Bench& bench, int64_t count, float scale) {
    const Tensor loss = Tensor::scratch(sizeof(double));
    const Tensor statistics(DType::fp32, {rows(), LayerOps::kRowStatistics});
    const auto first = [&](int64_t part) { return vocab() * part / count; };
    std::vector<Tensor> parts;
    for (int64_t part = 0; part < count; ++part) {
      parts.push_back(columns(logits_, first(part), first(part + 1)));
      bench->cross_entropy_part({.logits = parts.back(),
                                 .targets = targets_,
                                 .statistics = statistics,
                                 .first_class = first(part),
                                 .accumulate = part > 0});
    }
    bench->cross_entropy_finish({.targets = targets_,
                                 .statistics = statistics,
                                 .classes = vocab(),
                                 .loss = loss.as<double>(),
                                 .loss_scale = scale});
    for (int64_t part = 0; part < count; ++part) {
      const Tensor& logits = parts[static_cast<size_t>(part)];
      bench->cross_entropy_part_backward({.logits = logits,
                                          .targets = targets_,
                                          .statistics = statistics,
                                          .logits_grad = logits,
                                          .first_class = first(part)});
    }
    bench.finish();
    InParts result{*loss.as<double>(), Tensor(dtype(), {rows(), vocab()})};
    for (int64_t part = 0; part < count; ++part) {
      const Tensor& grad = parts[static_cast<size_t>(part)];
      const int64_t width = grad.numel() / rows();
      for (int64_t i = 0; i < grad.numel(); ++i) {
        result.grad.set(i / width * vocab() + first(part) + i % width, grad[i]);
      }
    }
    return result;
  }
  Tensor columns(const Tensor& whole, int64_t begin, int64_t end) const {
    Tensor cut(dtype(), {rows(), end - begin});
    for (int64_t i = 0; i < cut.numel(); ++i) {
      const int64_t row = i / (end - begin);
      cut.set(i, whole[row * vocab() + begin + i % (end - begin)]);
    }
    return cut;
  }

  Bench bench_;
  Tensor logits_ = Tensor::normal(dtype(), {rows(), vocab()}, 1, 0, 3);
  Tensor targets_ = Tensor::ids({rows()}, vocab(), 2);
};

TEST_P(LayerCrossEntropyTest, MatchesDoublePrecisionInPlaceOrNot) {
  const Tensor grad(dtype(), {rows(), vocab()});
  const Tensor in_place = logits_.copy();
  const LossReference want = reference(logits_, targets_, 8);
  const double loss = run(bench_, logits_, grad, 8);
  EXPECT_EQ(run(bench_, in_place, in_place, 8), loss);
  EXPECT_EQ(run(bench_, logits_, {}, 8), loss);
  EXPECT_NEAR(loss, want.loss.value, 4 * want.loss.error + 1e-12);
  expect_close(grad, want.grad, "logits_grad");
  EXPECT_TRUE(grad.same_bits(in_place));
}

TEST_P(LayerCrossEntropyTest, RowsWithoutTargetDoNotCount) {
  for (int64_t row = 0; row < rows(); row += 2) targets_.as<int32_t>()[row] = -1;
  const Tensor grad(dtype(), {rows(), vocab()});
  const double loss = run(bench_, logits_, grad, 1);
  if (rows() == 1) {
    EXPECT_EQ(loss, 0);
    expect_close(grad, Reals(static_cast<size_t>(vocab())), "logits_grad");
    return;
  }
  const LossReference want = reference(logits_, targets_, 1);
  EXPECT_NEAR(loss, want.loss.value, 4 * want.loss.error + 1e-12);
  expect_close(grad, want.grad, "logits_grad");
}

TEST_P(LayerCrossEntropyTest, BitsDoNotDependOnThreads) {
  Bench alone(1), team(3);
  const Tensor one(dtype(), {rows(), vocab()});
  const Tensor three(dtype(), {rows(), vocab()});
  EXPECT_EQ(run(alone, logits_, one, 1), run(team, logits_, three, 1));
  EXPECT_TRUE(one.same_bits(three));
}

TEST_P(LayerCrossEntropyTest, NaNShowsInTheLoss) {
  logits_.set(vocab() - 1, std::numeric_limits<double>::quiet_NaN());
  EXPECT_TRUE(std::isnan(run(bench_, logits_, {}, 1)));
  for (const int64_t parts : {1, 2}) EXPECT_TRUE(std::isnan(run_parts(bench_, parts, 1).loss));
  logits_.set(0, std::numeric_limits<double>::quiet_NaN());
  logits_.set(vocab() - 1, 0);
  EXPECT_TRUE(std::isnan(run_parts(bench_, 2, 1).loss));
}

TEST_P(LayerCrossEntropyTest, PartsMatchDoublePrecision) {
  targets_.as<int32_t>()[rows() / 2] = rows() > 1 ? -1 : 0;
  const LossReference want = reference(logits_, targets_, 8);
  for (const int64_t parts : {2, 3, 40}) {
    if (parts > vocab()) continue;
    const InParts got = run_parts(bench_, parts, 8);
    EXPECT_NEAR(got.loss, want.loss.value, 4 * want.loss.error + 1e-12) << parts;
    expect_close(got.grad, want.grad, std::to_string(parts) + " parts");
  }
}

TEST_P(LayerCrossEntropyTest, OnePartHasTheWholesBits) {
  const Tensor grad(dtype(), {rows(), vocab()});
  const double loss = run(bench_, logits_, grad, 8);
  const InParts part = run_parts(bench_, 1, 8);
  EXPECT_EQ(part.loss, loss);
  EXPECT_TRUE(part.grad.same_bits(grad));
}

TEST_P(LayerCrossEntropyTest, BitsOfPartsDoNotDependOnThreads) {
  Bench alone(1), team(3);
  const InParts one = run_parts(alone, 2, 1);
  const InParts three = run_parts(team, 2, 1);
  EXPECT_EQ(one.loss, three.loss);
  EXPECT_TRUE(one.grad.same_bits(three.grad));
}

// Also where such a row's logits are no numbers.
TEST_P(LayerCrossEntropyTest, PartsOfRowsWithoutTargetDoNotCount) {
  for (int64_t row = 0; row < rows(); ++row) targets_.as<int32_t>()[row] = -1;
  logits_.set(0, std::numeric_limits<double>::quiet_NaN());
  const InParts got = run_parts(bench_, 2, 1);
  EXPECT_EQ(got.loss, 0);
  expect_close(got.grad, Reals(static_cast<size_t>(rows() * vocab())), "logits_grad");
}

// A part that holds nothing to speak of, as one of padding does.
TEST_P(LayerCrossEntropyTest, PartsOfLogitsFarBelowChangeNothing) {
  for (int64_t i = 0; i < logits_.numel(); ++i) {
    if (i % vocab() >= vocab() / 2) {
      logits_.set(i, dtype() == DType::fp16 ? -6e4 : -std::numeric_limits<double>::infinity());
    }
  }
  for (int64_t row = 0; row < rows(); ++row) targets_.as<int32_t>()[row] = 0;
  const Tensor grad(dtype(), {rows(), vocab()});
  const double loss = run(bench_, logits_, grad, 8);
  const InParts got = run_parts(bench_, 2, 8);
  EXPECT_NEAR(got.loss, loss, 1e-6 * (1 + std::abs(loss)));
  for (int64_t i = 0; i < grad.numel(); ++i) {
    ASSERT_NEAR(got.grad[i], grad[i], 1e-2 * std::abs(grad[i]) + 1e-7) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, LayerCrossEntropyTest,
                         ::testing::Combine(::testing::ValuesIn(kLayerDTypes),
                                            ::testing::Values(std::pair(1, 2), std::pair(9, 257),
                                                              std::pair(130, 256))));

TEST(LayerCrossEntropy, HugeLogitsStayFinite) {
  Bench bench;
  Tensor logits(DType::fp32, {1, 3});
  logits.set(0, 3e38);
  logits.set(1, -3e38);
  logits.set(2, 3e38);
  const Tensor targets = Tensor::ids({1}, 1, 1);
  const Tensor grad(DType::fp32, {1, 3});
  const Tensor workspace = Tensor::scratch(bench->cross_entropy_workspace_bytes(1));
  const Tensor loss = Tensor::scratch(sizeof(double));
  bench->cross_entropy({.logits = logits,
                        .targets = targets,
                        .logits_grad = grad,
                        .loss = loss.as<double>(),
                        .workspace = workspace});
  bench.finish();
  EXPECT_NEAR(*loss.as<double>(), std::log(2.0), 1e-6);
  EXPECT_NEAR(grad[0], -0.5, 1e-6);
  EXPECT_NEAR(grad[1], 0, 1e-6);
}

// One logit a part.
TEST(LayerCrossEntropy, HugeLogitsOfPartsStayFinite) {
  Bench bench;
  Tensor logits(DType::fp32, {3, 1});
  logits.set(0, -3e38);
  logits.set(1, 3e38);
  logits.set(2, 3e38);
  const auto logit = [&](int64_t part) {
    return TensorView{logits.as<float>() + part, DType::fp32, {1, 1}};
  };
  const Tensor targets = Tensor::ids({1}, 1, 1);
  targets.as<int32_t>()[0] = 1;
  const Tensor statistics(DType::fp32, {1, LayerOps::kRowStatistics});
  const Tensor loss = Tensor::scratch(sizeof(double));
  for (int64_t part = 0; part < 3; ++part) {
    bench->cross_entropy_part({logit(part), targets, statistics, part, part > 0});
  }
  bench->cross_entropy_finish({targets, statistics, 3, loss.as<double>()});
  for (int64_t part = 0; part < 3; ++part) {
    bench->cross_entropy_part_backward({logit(part), targets, statistics, logit(part), part});
  }
  bench.finish();
  EXPECT_NEAR(*loss.as<double>(), std::log(2.0), 1e-6);
  EXPECT_NEAR(logits[0], 0, 1e-6);
  EXPECT_NEAR(logits[1], -0.5, 1e-6);
  EXPECT_NEAR(logits[2], 0.5, 1e-6);
}

TEST(LayerCrossEntropy, TargetsOutsideTheVocabularyFailTheWork) {
  for (const int32_t bad : {-2, 5}) {
    Bench bench;
    const Tensor logits = Tensor::normal(DType::fp32, {2, 5}, 1);
    const Tensor targets = Tensor::ids({2}, 5, 1);
    targets.as<int32_t>()[1] = bad;
    const Tensor workspace = Tensor::scratch(bench->cross_entropy_workspace_bytes(2));
    const Tensor loss = Tensor::scratch(sizeof(double));
    bench->cross_entropy(
        {.logits = logits, .targets = targets, .loss = loss.as<double>(), .workspace = workspace});
    EXPECT_THROW(bench.finish(), Error) << bad;
    Bench in_parts;
    const Tensor statistics(DType::fp32, {2, LayerOps::kRowStatistics});
    in_parts->cross_entropy_part({logits, targets, statistics});
    in_parts->cross_entropy_finish({targets, statistics, 5, loss.as<double>()});
    EXPECT_THROW(in_parts.finish(), Error) << bad;
  }
}

}  // namespace
}  // namespace strata::ops
