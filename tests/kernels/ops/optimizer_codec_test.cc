// The update of encoded state: the fp32 update between decoding and encoding, bit for bit, however
// it is run; and what the codecs promise.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <tuple>

#include "strata/error.h"
#include "tests/kernels/ops/encoded_state.h"

namespace strata::ops {
namespace {

constexpr std::array<StateKind, 2> kMoments = {StateKind::exp_avg, StateKind::exp_avg_sq};

using Setting = std::tuple<OptimizerKind, Codec, Codec, DType>;

class EncodedUpdate : public ::testing::TestWithParam<Setting> {
 protected:
  EncodedUpdate()
      : state_(start_state(std::get<3>(GetParam()), DType::bf16)),
        start_(std::get<1>(GetParam()), std::get<2>(GetParam())),
        expected_(start_) {
    // What is kept is what the update sees.
    canonical_masters();
    start_.encode(state_, /*step=*/1);
    State values(state_, 0);
    for (StateKind kind : kMoments) start_.decode(kind, state_.param, moment(values, kind));
    State updated(values, 0);
    updated.update(scalars_);
    expected_ = start_;
    encode_master(expected_.codecs[0], reinterpret_cast<const float*>(updated.master.at(0)), kNumel,
                  expected_.data(StateKind::master));
    const OptimizerMoments moments = moments_of(scalars_.kind);
    if (moments.exp_avg) expected_.encode_moment(StateKind::exp_avg, updated.exp_avg, 2);
    if (moments.exp_avg_sq) expected_.encode_moment(StateKind::exp_avg_sq, updated.exp_avg_sq, 2);
    expected_param_ = std::make_unique<Elements>(updated.param);
  }

  static Elements& moment(State& state, StateKind kind) {
    return kind == StateKind::exp_avg ? state.exp_avg : state.exp_avg_sq;
  }

  // Masters that an update may have left: one NaN. Parameters are their roundings.
  void canonical_masters() {
    for (int64_t i = 0; i < kNumel; ++i) {
      if (std::isnan(state_.master.value(i))) {
        state_.master.set(i, std::numeric_limits<float>::quiet_NaN());
      }
      state_.param.set_value(i, state_.master.value(i));
    }
  }

  // Updates in calls of `step` elements each.
  void expect_bits(int64_t step, const std::string& how) {
    EncodedState run = start_;
    Elements param(state_.param);
    EncodedSpans spans = run.spans(state_.grad, param, scalars_.kind);
    for (int64_t at = 0; at < kNumel; at += step) {
      spans.begin = at;
      spans.end = std::min(at + step, kNumel);
      spans.first_index = kFirstIndex + static_cast<uint64_t>(at);
      optimizer_update(scalars_, spans);
    }
    EXPECT_TRUE(same_bits(param, *expected_param_)) << how;
    EXPECT_TRUE(param.guards_intact()) << how;
    for (size_t i = 0; i < run.stored.size(); ++i) {
      EXPECT_EQ(run.stored[i], expected_.stored[i]) << name(kOptimizerKinds[i]) << ", " << how;
    }
  }

  OptimizerScalars scalars_ = [] {
    OptimizerScalars scalars = scalars_at_step(std::get<0>(GetParam()), 2);
    scalars.step = 2;
    return scalars;
  }();
  State state_;
  EncodedState start_;
  EncodedState expected_;
  std::unique_ptr<Elements> expected_param_;
};

TEST_P(EncodedUpdate, IsTheFp32UpdateBetweenDecodingAndEncoding) {
  for (std::string_view isa : available_isas()) {
    const ForcedIsa forced(isa);
    for (int threads : {1, 3}) {
      const TeamScope team(threads);
      for (int64_t step : {kNumel, 7 * kCodecBlockNumel}) {
        expect_bits(step, std::string(isa) + ", threads " + std::to_string(threads) +
                              ", calls of " + std::to_string(step));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Every, EncodedUpdate,
                         ::testing::Combine(::testing::ValuesIn(kOptimizers),
                                            ::testing::Values(Codec::fp32, Codec::split16),
                                            ::testing::Values(Codec::fp32, Codec::bf16,
                                                              Codec::int8),
                                            ::testing::ValuesIn(kFloatDTypes)),
                         [](const auto& test) {
                           return std::string(name(std::get<0>(test.param))) + "_" +
                                  std::string(name(std::get<1>(test.param))) + "_" +
                                  std::string(name(std::get<2>(test.param))) + "_" +
                                  std::string(name(std::get<3>(test.param)));
                         });

TEST(SplitMaster, ComesBackWithEveryBit) {
  Elements master(DType::fp32, kNumel);
  fill_with_hard_values(master, 5);
  for (int64_t i = 0; i < kNumel; ++i) {  // an update leaves one NaN
    if (std::isnan(master.value(i))) master.set(i, std::numeric_limits<float>::quiet_NaN());
  }
  Elements param(DType::bf16, kNumel);
  for (std::string_view isa : available_isas()) {
    const ForcedIsa forced(isa);
    cast(param.at(0), DType::bf16, master.at(0), DType::fp32, kNumel);
    std::vector<std::byte> rest(static_cast<size_t>(stored_bytes(Codec::split16, kNumel)));
    encode_master(Codec::split16, reinterpret_cast<const float*>(master.at(0)), kNumel,
                  rest.data());
    Elements back(DType::fp32, kNumel);
    decode_state({StateKind::master, Codec::split16, rest.data(), param.at(0),
                  reinterpret_cast<float*>(back.at(0)), kNumel});
    EXPECT_TRUE(same_bits(back, master)) << isa;
  }
}

TEST(Int8Moment, EveryCodeDecodesOnEveryMachine) {
  std::vector<std::byte> stored(static_cast<size_t>(stored_bytes(Codec::int8, kGrainNumel)));
  for (int64_t block = 0; block < kBlocksAGrain; ++block) {
    const float scale = std::ldexp(1.37f, static_cast<int>(block) * 5 - 40);
    std::memcpy(stored.data() + int8_scale_at(block), &scale, sizeof(scale));
    for (int code = 0; code < 256; ++code) {
      stored[static_cast<size_t>(int8_codes_at(block) + code)] = static_cast<std::byte>(code);
    }
  }
  for (StateKind kind : kMoments) {
    const reference::Int8Format format(kind);
    for (std::string_view isa : available_isas()) {
      const ForcedIsa forced(isa);
      std::vector<float> values(kGrainNumel);
      decode_state({kind, Codec::int8, stored.data(), nullptr, values.data(), kGrainNumel});
      for (int64_t i = 0; i < kGrainNumel; ++i) {
        float scale;
        std::memcpy(&scale, stored.data() + int8_scale_at(i / kCodecBlockNumel), sizeof(scale));
        const float expected = format.decode(static_cast<uint8_t>(i % kCodecBlockNumel), scale);
        ASSERT_EQ(std::bit_cast<uint32_t>(values[static_cast<size_t>(i)]),
                  std::bit_cast<uint32_t>(expected))
            << isa << ", " << name(kind) << ", element " << i;
      }
    }
  }
}

// Rounded to a neighbour, and on average to the value: five standard deviations of the mean. Of two
// neighbours, which share their noise's source.
TEST(StochasticRounding, IsUnbiased) {
  constexpr int kSteps = 20000;
  constexpr size_t kNeighbours[] = {76, 77};
  std::array<float, kCodecBlockNumel> values{};
  values[0] = 1.0f;  // the int8 scale
  constexpr float kSample[] = {0.7123f, 0.031f, 0.00271f, 0.5001f};
  for (Codec codec : {Codec::bf16, Codec::int8}) {
    for (StateKind kind : kMoments) {
      for (float sample : kSample) {
        for (size_t i : kNeighbours) values[i] = sample;
        std::array<double, 2> sum{}, squares{};
        for (int step = 0; step < kSteps; ++step) {
          std::vector<std::byte> stored(static_cast<size_t>(stored_bytes(codec, kGrainNumel)));
          reference::encode_block(kind, codec, values.data(), 0, static_cast<uint64_t>(step), 0,
                                  stored.data());
          std::vector<float> decoded(kGrainNumel);
          decode_state({kind, codec, stored.data(), nullptr, decoded.data(), kGrainNumel});
          for (size_t i = 0; i < 2; ++i) {
            const auto value = static_cast<double>(decoded[kNeighbours[i]]);
            const double error = value - static_cast<double>(sample);
            sum[i] += error;
            squares[i] += error * error;
          }
        }
        for (size_t i = 0; i < 2; ++i) {
          const double deviation = std::sqrt(squares[i]) / kSteps;
          EXPECT_LE(std::abs(sum[i] / kSteps), 5 * deviation)
              << name(codec) << ", " << name(kind) << ", " << sample << ", " << i;
          EXPECT_GT(deviation, 0) << name(codec) << ", " << name(kind) << ", " << sample;
        }
      }
    }
  }
}

TEST(Int8Moment, ASecondMomentAboveZeroStaysAboveZero) {
  std::array<float, kCodecBlockNumel> values{};
  values[0] = 1.0f;
  for (int64_t i = 1; i < kCodecBlockNumel; ++i) {
    values[static_cast<size_t>(i)] = std::ldexp(1.0f, -static_cast<int>(i % 90));
  }
  std::vector<std::byte> stored(static_cast<size_t>(stored_bytes(Codec::int8, kGrainNumel)));
  reference::encode_block(StateKind::exp_avg_sq, Codec::int8, values.data(), 0, 1, 0,
                          stored.data());
  std::vector<float> decoded(kGrainNumel);
  decode_state(
      {StateKind::exp_avg_sq, Codec::int8, stored.data(), nullptr, decoded.data(), kGrainNumel});
  for (int64_t i = 0; i < kCodecBlockNumel; ++i) {
    EXPECT_GT(decoded[static_cast<size_t>(i)], 0) << i;
  }
}

TEST(ClearBlocks, ZeroesTheirElementsAlone) {
  for (Codec codec : {Codec::fp32, Codec::bf16, Codec::int8}) {
    std::vector<std::byte> stored(static_cast<size_t>(stored_bytes(codec, kNumel)));
    std::array<float, kCodecBlockNumel> ones;
    ones.fill(1.0f);
    for (int64_t block = 0; block < kNumel / kCodecBlockNumel; ++block) {
      if (codec == Codec::fp32) {
        std::memcpy(stored.data() + block * kCodecBlockNumel * 4, ones.data(), sizeof(ones));
      } else {
        reference::encode_block(StateKind::exp_avg, codec, ones.data(), 0, 1, block, stored.data());
      }
    }
    clear_blocks(codec, 3 * kCodecBlockNumel, 40 * kCodecBlockNumel, stored.data());
    std::vector<float> values(kNumel);
    decode_state({StateKind::exp_avg, codec, stored.data(), nullptr, values.data(), kNumel});
    for (int64_t i = 0; i < kNumel; ++i) {
      const bool cleared = i >= 3 * kCodecBlockNumel && i < 40 * kCodecBlockNumel;
      ASSERT_EQ(values[static_cast<size_t>(i)] == 0, cleared) << name(codec) << ", " << i;
    }
  }
}

TEST(EncodedSpansTest, WhatDoesNotFitIsRefused) {
  EncodedState state(Codec::split16, Codec::int8);
  Elements grad(DType::bf16, kNumel);
  Elements param(DType::bf16, kNumel);
  const OptimizerScalars scalars = scalars_at_step(OptimizerKind::adamw, 1);
  const EncodedSpans good = state.spans(grad, param, OptimizerKind::adamw);
  EncodedSpans bad = good;
  bad.param_dtype = DType::fp16;
  EXPECT_THROW(optimizer_update(scalars, bad), Error);
  bad = good;
  bad.exp_avg.codec = Codec::split16;
  EXPECT_THROW(optimizer_update(scalars, bad), Error);
  bad = good;
  bad.end = kNumel - 1;
  EXPECT_THROW(optimizer_update(scalars, bad), Error);
  bad = good;
  bad.first_index = 3;
  EXPECT_THROW(optimizer_update(scalars, bad), Error);
  EXPECT_NO_THROW(optimizer_update(scalars, good));
}

}  // namespace
}  // namespace strata::ops
