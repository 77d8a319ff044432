// What CUDA kernels compute for one element or row, on the host.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/ops/cuda/element_math.h"
#include "tests/kernels/ops/dropout_reference.h"
#include "tests/kernels/ops/layer_testing.h"

namespace strata::ops {
namespace {

// sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3), and 2 u'.
Real gate(const Real& x) {
  const Real two_k = 2 * std::sqrt(2 / M_PI);
  return Real(1) / (Real(1) + exp(Real(0) - two_k * (x + Real(0.044715) * x * x * x)));
}
Real gate_slope(const Real& x) {
  return Real(2 * std::sqrt(2 / M_PI)) * (Real(1) + Real(3 * 0.044715) * x * x);
}

TEST(CudaElementMath, GeluMatchesDoublePrecision) {
  const Tensor x = Tensor::normal(DType::fp32, {2000}, 1, 0, 3);
  Tensor out(DType::fp32, {2000}), slope(DType::fp32, {2000});
  Reals want_out, want_slope;
  for (int64_t i = 0; i < x.numel(); ++i) {
    out.set(i, cuda::gelu(x.as<float>()[i]));
    slope.set(i, cuda::gelu_slope(x.as<float>()[i]));
    const Real s = gate(x[i]);
    want_out.push_back(Real(x[i]) * s);
    want_slope.push_back(s + Real(x[i]) * s * (Real(1) - s) * gate_slope(x[i]));
  }
  expect_close(out, want_out, "gelu");
  expect_close(slope, want_slope, "slope");
}

TEST(CudaElementMath, GeluKeepsNaNAndEndsInZeroOrTheIdentity) {
  EXPECT_TRUE(std::isnan(cuda::gelu(std::numeric_limits<float>::quiet_NaN())));
  EXPECT_TRUE(std::isnan(cuda::gelu_slope(std::numeric_limits<float>::quiet_NaN())));
  for (const float x : {-1e4f, -20.0f, 20.0f, 1e4f}) {
    EXPECT_NEAR(cuda::gelu(x), std::max(x, 0.0f), 1e-30) << x;
    EXPECT_NEAR(cuda::gelu_slope(x), x > 0 ? 1 : 0, 1e-6) << x;
  }
}

TEST(CudaElementMath, LayerNormMatchesDoublePrecision) {
  constexpr int64_t kNumel = 500;
  const Tensor x = Tensor::normal(DType::fp32, {kNumel}, 1),
               dy = Tensor::normal(DType::fp32, {kNumel}, 2),
               weight = Tensor::normal(DType::fp32, {kNumel}, 3),
               bias = Tensor::normal(DType::fp32, {kNumel}, 4);
  const float mean = 0.25f, rstd = 1.5f;
  const cuda::NormRowMeans means{.g = 0.125f, .gn = -0.375f};
  Tensor out(DType::fp32, {kNumel}), x_grad(DType::fp32, {kNumel});
  Reals want_out, want_x_grad;
  for (int64_t i = 0; i < kNumel; ++i) {
    const auto at = [&](const Tensor& tensor) { return tensor.as<float>()[i]; };
    const float normal = cuda::norm_normal(at(x), mean, rstd);
    out.set(i, cuda::norm_out(normal, at(weight), at(bias)));
    x_grad.set(i, cuda::norm_x_grad(normal, at(dy) * at(weight), rstd, means, at(bias)));
    const Real n = (Real(x[i]) - mean) * rstd;
    want_out.push_back(n * weight[i] + bias[i]);
    const Real g = Real(dy[i]) * weight[i];
    want_x_grad.push_back(Real(rstd) * (g - Real(means.g) - n * means.gn) + bias[i]);
  }
  expect_close(out, want_out, "out");
  expect_close(x_grad, want_x_grad, "x_grad");
}

// In any cut of the row.
TEST(CudaElementMath, SoftmaxOfARowMatchesDoublePrecision) {
  constexpr int64_t kVocab = 300, kTarget = 41;
  const Tensor x = Tensor::normal(DType::fp32, {kVocab}, 1, 0, 3);
  double max = x[0];
  for (int64_t i = 1; i < kVocab; ++i) max = std::max(max, x[i]);
  Sum sum;
  for (int64_t i = 0; i < kVocab; ++i) sum.add(exp(Real(x[i]) - max));
  const Real total = sum.total();
  for (const int64_t parts : {1, 7, 300, 512}) {
    cuda::RowStatistics row;
    for (int64_t part = 0; part < parts; ++part) {
      cuda::RowStatistics piece;
      for (int64_t i = part; i < kVocab; i += parts) piece.add(x.as<float>()[i]);
      row.add(piece);
    }
    EXPECT_EQ(row.max, static_cast<float>(max)) << parts;
    const double loss = std::log(total.value) + max - x[kTarget];
    row.at_target = x.as<float>()[kTarget];
    row.scale = 8;
    EXPECT_NEAR(row.loss(), loss, 4 * total.error / total.value) << parts;
    Tensor grad(DType::fp32, {kVocab});
    Reals want;
    for (int64_t i = 0; i < kVocab; ++i) {
      grad.set(i, row.grad(x.as<float>()[i], i == kTarget));
      const Real softmax = exp(Real(x[i]) - max) * (Real(8) / total);
      want.push_back(i == kTarget ? softmax - Real(8) : softmax);
    }
    expect_close(grad, want, std::to_string(parts) + " parts");
  }
}

TEST(CudaElementMath, SoftmaxHidesNoNaNAndMindsNoInfinity) {
  cuda::RowStatistics row;
  row.add(-std::numeric_limits<float>::infinity());
  EXPECT_EQ(row.sum, 0);
  row.add(2.0f);
  row.add(cuda::RowStatistics());
  EXPECT_EQ(row.sum, 1);
  row.add(std::numeric_limits<float>::quiet_NaN());
  row.add(3.0f);
  EXPECT_TRUE(std::isnan(row.sum));
}

constexpr DropoutSite kSite = {
    .probability = 0.3, .key = {.seed = 7, .step = 5, .micro_batch = 3, .layer = 2}, .site = 1};

TEST(CudaElementMath, DropoutOfALineIsItsDefinition) {
  const DropoutReference reference(kSite);
  const DropoutStream dropout = stream_of(kSite);
  std::vector<int> seen(1024, 0);
  for (int64_t call = 0; call < 128; ++call) {
    const uint32_t keeps =
        cuda::dropout_keeps(dropout, static_cast<uint64_t>(call), dropout.stream);
    for (int64_t i = 0; i < cuda::kDropoutCallElements; ++i) {
      const int64_t index = cuda::dropout_line_index(call, i);
      ++seen[static_cast<size_t>(index)];
      EXPECT_EQ(cuda::dropout_factor((keeps >> i & 1) != 0, dropout.scale),
                static_cast<float>(reference.of_line(index)))
          << index;
    }
  }
  EXPECT_EQ(seen, std::vector<int>(1024, 1));
}

TEST(CudaElementMath, DropoutOfAttentionIsItsDefinition) {
  const DropoutReference reference(kSite);
  const DropoutStream dropout = stream_of(kSite);
  for (const int64_t batch : {0, 3}) {
    for (const int64_t head : {0, 5}) {
      const uint64_t stream = cuda::attention_stream(dropout, batch, head);
      for (int64_t query = 0; query < 40; ++query) {
        for (int64_t key = 0; key <= query; ++key) {
          const uint32_t keeps = cuda::attention_keeps(dropout, query / 8, key, stream);
          EXPECT_EQ((keeps >> query % 8 & 1) != 0,
                    reference.of_attention(batch, head, query, key) != 0)
              << query << " " << key;
        }
      }
    }
  }
}

template <typename Element>
void expect_rounds_as(DType dtype) {
  for (int64_t stored = 0; stored < 65536; ++stored) {
    const float value = Element::widen(static_cast<uint16_t>(stored));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(Element::widen(Element::narrow(value))));
      continue;
    }
    EXPECT_EQ(value, widened(dtype, static_cast<uint16_t>(stored)));
    for (const float between : {value, std::nextafter(value, 0.0f), value * 1.001f}) {
      EXPECT_EQ(Element::narrow(between), narrowed(dtype, between)) << between;
    }
  }
}

TEST(CudaElementMath, RoundsAsTheHouseDoes) {
  expect_rounds_as<cuda::Bf16>(DType::bf16);
  expect_rounds_as<cuda::Fp16>(DType::fp16);
}

}  // namespace
}  // namespace strata::ops
