// Dropout is what its definition says, element by element, on every instruction set and cut.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/ops/optimizer_ops.h"
#include "strata/error.h"
#include "tests/kernels/ops/dropout_reference.h"
#include "tests/kernels/ops/layer_testing.h"
#include "tests/kernels/ops/optimizer_testing.h"

namespace strata::ops {
namespace {

constexpr DropoutSite kSite = {
    .probability = 0.3, .key = {.seed = 7, .step = 5, .micro_batch = 3, .layer = 2}, .site = 1};

class LayerDropoutTest : public ::testing::TestWithParam<std::tuple<DType, int64_t>> {
 protected:
  DType dtype() const { return std::get<0>(GetParam()); }
  int64_t numel() const { return std::get<1>(GetParam()); }

  const Tensor x_ = Tensor::normal(std::get<0>(GetParam()), {std::get<1>(GetParam())}, 1);
  const Tensor residual_ = Tensor::normal(std::get<0>(GetParam()), {std::get<1>(GetParam())}, 2);
};

TEST_P(LayerDropoutTest, MatchesItsDefinition) {
  Bench bench;
  const DropoutReference reference(kSite);
  const Tensor out(dtype(), {numel()}), sum(dtype(), {numel()});
  bench->dropout({.x = x_, .out = out, .site = kSite});
  bench->dropout({.x = x_, .residual = residual_, .out = sum, .site = kSite});
  bench.finish();
  Reals want, want_sum;
  for (int64_t i = 0; i < numel(); ++i) {
    want.push_back(Real(x_[i]) * Real(reference.of_line(i)).rounded());
    want_sum.push_back(Real(residual_[i]) + want.back());
  }
  expect_close(out, want, "out");
  expect_close(sum, want_sum, "residual + out");
}

TEST_P(LayerDropoutTest, WithoutDropsItCopiesAndAdds) {
  Bench bench;
  const Tensor out(dtype(), {numel()}), sum = residual_.copy();
  bench->dropout({.x = x_, .out = out});
  bench->dropout({.x = x_, .residual = sum, .out = sum});
  bench.finish();
  Reals want_sum;
  for (int64_t i = 0; i < numel(); ++i) want_sum.push_back(Real(residual_[i]) + Real(x_[i]));
  EXPECT_TRUE(out.same_bits(x_));
  expect_close(sum, want_sum, "residual + x");
}

TEST_P(LayerDropoutTest, BitsDependNeitherOnInstructionSetNorThreadsNorPlace) {
  Bench alone(1);
  const Tensor expected(dtype(), {numel()});
  alone->dropout({.x = x_, .residual = residual_, .out = expected, .site = kSite});
  alone.finish();
  for (const std::string_view isa : available_isas()) {
    const ForcedIsa forced(isa);
    Bench team(3);
    const Tensor in_x = x_.copy(), in_residual = residual_.copy();
    team->dropout({.x = in_x, .residual = residual_, .out = in_x, .site = kSite});
    team->dropout({.x = x_, .residual = in_residual, .out = in_residual, .site = kSite});
    team.finish();
    EXPECT_TRUE(in_x.same_bits(expected)) << isa;
    EXPECT_TRUE(in_residual.same_bits(expected)) << isa;
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, LayerDropoutTest,
                         ::testing::Combine(::testing::ValuesIn(kLayerDTypes),
                                            ::testing::Values(1, 15, 128, 384, 5003)));

// Which of so many elements a site keeps.
std::vector<bool> kept(const DropoutSite& site, int64_t numel) {
  Bench bench;
  Tensor x(DType::fp32, {numel});
  for (int64_t i = 0; i < numel; ++i) x.set(i, 1);
  bench->dropout({.x = x, .out = x, .site = site});
  bench.finish();
  std::vector<bool> result;
  for (int64_t i = 0; i < numel; ++i) result.push_back(x[i] != 0);
  return result;
}

// Five standard deviations of a binomial distribution, of all elements, and of those that share a
// place in their tile's words, row or column.
TEST(LayerDropout, KeepsTheShareThatItShould) {
  constexpr int64_t kNumel = 1 << 20;
  for (const double probability : {0.001, 0.1, 0.5, 0.9}) {
    DropoutSite site = kSite;
    site.probability = probability;
    const double threshold = std::round(probability * 65536) / 65536;
    const std::vector<bool> mask = kept(site, kNumel);
    int64_t total = 0;
    std::vector<int64_t> of_place(128, 0);
    for (int64_t i = 0; i < kNumel; ++i) {
      total += mask[static_cast<size_t>(i)];
      of_place[static_cast<size_t>(i % 128)] += mask[static_cast<size_t>(i)];
    }
    const auto expect_share = [&](int64_t count, double numel) {
      const double deviation = std::sqrt(numel * threshold * (1 - threshold));
      EXPECT_NEAR(static_cast<double>(count), numel * (1 - threshold), 5 * deviation);
    };
    expect_share(total, kNumel);
    for (const int64_t count : of_place) expect_share(count, kNumel / 128.0);
  }
}

// Each part of the key counts: any two masks agree where chance lets them, within five standard
// deviations.
TEST(LayerDropout, EveryPartOfTheKeyDrawsAnotherMask) {
  constexpr int64_t kNumel = 1 << 14;
  std::vector<DropoutSite> sites(7, kSite);
  sites[1].key.seed += 1;
  sites[2].key.step += 1;
  sites[3].key.micro_batch += 1;
  sites[4].key.layer += 1;
  sites[5].site += 1;
  sites[6].key.seed += uint64_t{1} << 32;
  std::vector<std::vector<bool>> masks;
  for (const DropoutSite& site : sites) masks.push_back(kept(site, kNumel));
  const double keep = 1 - std::round(kSite.probability * 65536) / 65536;
  const double agree = keep * keep + (1 - keep) * (1 - keep);
  const double deviation = std::sqrt(kNumel * agree * (1 - agree));
  for (size_t a = 0; a < masks.size(); ++a) {
    for (size_t b = 0; b < a; ++b) {
      int64_t same = 0;
      for (size_t i = 0; i < masks[a].size(); ++i) same += masks[a][i] == masks[b][i];
      EXPECT_NEAR(static_cast<double>(same), kNumel * agree, 5 * deviation) << a << " and " << b;
    }
  }
}

TEST(LayerDropout, ProbabilitiesAreRoundedToTheirResolution) {
  DropoutSite site = kSite;
  site.probability = 0x1p-18;
  EXPECT_FALSE(stream_of(site).drops());
  EXPECT_EQ(stream_of(site).scale, 1);
  site.probability = 0x1p-17;
  EXPECT_EQ(stream_of(site).threshold, 1u);
  site.probability = 1 - 0x1p-30;
  EXPECT_EQ(stream_of(site).threshold, 65535u);
  EXPECT_EQ(stream_of(site).scale, 65536);
}

TEST(LayerDropout, RefusesWhatIsNoProbability) {
  Bench bench;
  const Tensor x = Tensor::normal(DType::fp32, {4}, 1);
  for (const double probability : {-0.1, 1.0, std::numeric_limits<double>::quiet_NaN()}) {
    DropoutSite site = kSite;
    site.probability = probability;
    EXPECT_THROW(bench->dropout({.x = x, .out = x, .site = site}), Error) << probability;
  }
}

// Dropped or not: a diverged run must show.
TEST(LayerDropout, KeepsNaN) {
  for (const DType dtype : kLayerDTypes) {
    Bench bench;
    Tensor x(dtype, {200});
    for (int64_t i = 0; i < 200; ++i) x.set(i, std::numeric_limits<double>::quiet_NaN());
    bench->dropout({.x = x, .out = x, .site = kSite});
    bench.finish();
    for (int64_t i = 0; i < 200; ++i) EXPECT_TRUE(std::isnan(x[i])) << name(dtype) << i;
  }
}

}  // namespace
}  // namespace strata::ops
