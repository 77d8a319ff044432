// Training state's arithmetic away from the vector kernels has their bits: a GPU's kernels on a GPU
// where there is one, and the same source on a team of the host that takes a thread block's place.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/device/cuda_device.h"
#include "kernels/ops/cuda/state_blocks.h"
#include "kernels/ops/state_ops.h"
#include "strata/traffic.h"
#include "tests/kernels/ops/encoded_state.h"

namespace strata::ops {
namespace {

// A thread block's phases, one thread after the other.
class LoopTeam {
 public:
  static constexpr int kSlots = kCodecBlockNumel;

  template <class Body>
  void each(int64_t n, const Body& body) {
    for (int64_t i = 0; i < n; ++i) body(i, static_cast<int>(i % kSlots));
  }
  uint32_t largest(const uint32_t (&values)[kSlots]) {
    return *std::max_element(std::begin(values), std::end(values));
  }
};

// Runs on memory of its own: what it is given is copied there, and back.
class Machine {
 public:
  virtual ~Machine() = default;
  virtual void update(const OptimizerScalars& scalars, const EncodedSpans& spans) = 0;
  virtual void land(const LandGradientSpans& spans) = 0;
};

class LoopMachine final : public Machine {
 public:
  void update(const OptimizerScalars& scalars, const EncodedSpans& spans) override {
    LoopTeam team;
    exact::with_rule(scalars, [&](const auto& rule) {
      for (int64_t at = spans.begin; at < spans.end; at += kCodecBlockNumel) {
        exact::update_block(team, rule, static_cast<float>(scalars.grad_scale), scalars.step, spans,
                            at);
      }
    });
  }
  void land(const LandGradientSpans& spans) override {
    LoopTeam team;
    std::vector<float> landed(kGrainNumel);
    double lanes[exact::kSumLanes];
    for (int64_t grain = 0; grain < spans.numel / kGrainNumel; ++grain) {
      exact::land_grain(team, spans, grain, landed.data(), lanes);
    }
  }
};

class CudaMachine final : public Machine {
 public:
  void update(const OptimizerScalars& scalars, const EncodedSpans& spans) override {
    EncodedSpans there = spans;
    const auto bytes = [&](DType dtype) {
      return static_cast<size_t>(spans.end) * size_bytes(dtype);
    };
    there.grad = upload(const_cast<void*>(spans.grad), bytes(spans.grad_dtype));
    there.param = upload(spans.param, bytes(spans.param_dtype));
    for (StateSpan* span : {&there.master, &there.exp_avg, &there.exp_avg_sq}) {
      const auto stored = static_cast<size_t>(stored_bytes(
          span->codec, round_up(spans.end, span->codec == Codec::int8 ? kGrainNumel : 1)));
      span->data = static_cast<std::byte*>(upload(span->data, stored));
    }
    ops_->optimizer_update(*queue_, scalars, there);
    download();
  }
  void land(const LandGradientSpans& spans) override {
    LandGradientSpans there = spans;
    const auto numel = static_cast<size_t>(spans.numel);
    there.src = upload(const_cast<void*>(spans.src), numel * size_bytes(spans.src_dtype));
    there.dst = upload(spans.dst, numel * size_bytes(spans.dst_dtype));
    there.grain_sum_of_squares = static_cast<double*>(
        upload(spans.grain_sum_of_squares, numel / kGrainNumel * sizeof(double)));
    ops_->land_gradient(*queue_, there);
    download();
  }

 private:
  struct Copy {
    void* home;
    MemoryBlock pinned, there;
  };

  void* upload(void* from, size_t bytes) {
    if (from == nullptr || bytes == 0) return nullptr;
    Copy copy{from, device_->allocate_pinned(bytes), device_->allocate(bytes)};
    std::memcpy(copy.pinned.data(), from, bytes);
    queue_->copy(copy.there.data(), copy.pinned.data(), bytes, CopyDirection::host_to_device, kTag);
    copies_.push_back(std::move(copy));
    return copies_.back().there.data();
  }
  void download() {
    for (const Copy& copy : copies_) {
      queue_->copy(copy.pinned.data(), copy.there.data(), copy.there.bytes(),
                   CopyDirection::device_to_host, kTag);
    }
    queue_->synchronize();
    for (const Copy& copy : copies_) std::memcpy(copy.home, copy.pinned.data(), copy.there.bytes());
    copies_.clear();
  }

  static constexpr TrafficTag kTag = {StateKind::other, -1, "test"};
  NullTrafficSink traffic_;
  const std::unique_ptr<Device> device_ =
      make_cuda_device({.ordinal = 0, .cap_bytes = size_t{256} << 20}, traffic_);
  const std::unique_ptr<Queue> queue_ = device_->create_queue({.name = "compute"});
  const std::unique_ptr<StateOps> ops_ = make_cuda_state_ops();
  std::vector<Copy> copies_;  // after the device
};

enum class Where { loop, cuda };

std::unique_ptr<Machine> machine(Where where) {
  if (where == Where::cuda) return std::make_unique<CudaMachine>();
  return std::make_unique<LoopMachine>();
}

std::string why_not(Where where) {
  return where == Where::cuda ? cuda_unavailable_reason() : std::string();
}

using Setting = std::tuple<Where, OptimizerKind, Codec, Codec, DType>;

class StateUpdate : public ::testing::TestWithParam<Setting> {
 protected:
  void SetUp() override {
    const std::string reason = why_not(std::get<0>(GetParam()));
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
};

TEST_P(StateUpdate, HasTheVectorKernelsBits) {
  const auto [where, kind, master, moments, grad_dtype] = GetParam();
  const auto there = machine(where);
  for (const DType param_dtype : kFloatDTypes) {
    if (master == Codec::split16 && param_dtype != DType::bf16) continue;
    State state = start_state(grad_dtype, param_dtype);
    for (int64_t i = 0; i < kNumel; ++i) state.param.set_value(i, state.master.value(i));
    EncodedState expected(master, moments);
    expected.encode(state, /*step=*/1);
    EncodedState run = expected;
    Elements param(state.param), expected_param(state.param);
    OptimizerScalars scalars = scalars_at_step(kind, 2);
    scalars.step = 2;
    EncodedSpans want = expected.spans(state.grad, expected_param, kind);
    EncodedSpans got = run.spans(state.grad, param, kind);
    // From the middle of a grain, in two calls.
    const auto part = [](EncodedSpans spans, int64_t begin, int64_t end) {
      spans.begin = begin;
      spans.end = end;
      spans.first_index = kFirstIndex + static_cast<uint64_t>(begin);
      return spans;
    };
    constexpr int64_t kCut = 7 * kCodecBlockNumel;
    optimizer_update(scalars, part(want, kCodecBlockNumel, kNumel));
    there->update(scalars, part(got, kCodecBlockNumel, kCut));
    there->update(scalars, part(got, kCut, kNumel));
    EXPECT_TRUE(same_bits(param, expected_param)) << name(param_dtype);
    for (size_t i = 0; i < run.stored.size(); ++i) {
      EXPECT_EQ(run.stored[i], expected.stored[i]) << name(kOptimizerKinds[i]);
    }
  }
}

std::string update_name(const ::testing::TestParamInfo<Setting>& test) {
  const auto& [where, kind, master, moments, grad_dtype] = test.param;
  return std::string(where == Where::cuda ? "cuda_" : "loop_") + std::string(name(kind)) + "_" +
         std::string(name(master)) + "_" + std::string(name(moments)) + "_" +
         std::string(name(grad_dtype));
}
INSTANTIATE_TEST_SUITE_P(Every, StateUpdate,
                         ::testing::Combine(::testing::Values(Where::loop, Where::cuda),
                                            ::testing::ValuesIn(kOptimizers),
                                            ::testing::Values(Codec::fp32, Codec::split16),
                                            ::testing::Values(Codec::fp32, Codec::bf16,
                                                              Codec::int8),
                                            ::testing::ValuesIn(kFloatDTypes)),
                         update_name);

class StateElsewhere : public ::testing::TestWithParam<Where> {
 protected:
  void SetUp() override {
    const std::string reason = why_not(GetParam());
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
};
INSTANTIATE_TEST_SUITE_P(Where, StateElsewhere, ::testing::Values(Where::loop, Where::cuda),
                         [](const auto& test) {
                           return test.param == Where::cuda ? "cuda" : "loop";
                         });

// fp32 state is updated in any number of elements.
TEST_P(StateElsewhere, UpdatesPartsOfABlock) {
  const auto there = machine(GetParam());
  for (const OptimizerKind kind : kOptimizers) {
    State state(DType::bf16, DType::bf16, 3 * kCodecBlockNumel, 1);
    EncodedState expected(Codec::fp32, Codec::fp32);
    for (size_t i = 0; i < 3; ++i) expected.stored[i].resize(state.master.size());
    const auto fill = [](std::vector<std::byte>& to, const Elements& from) {
      std::memcpy(to.data(), from.at(0), from.size());
    };
    fill(expected.stored[0], state.master);
    fill(expected.stored[1], state.exp_avg);
    fill(expected.stored[2], state.exp_avg_sq);
    EncodedState run = expected;
    Elements param(state.param), expected_param(state.param);
    const OptimizerScalars scalars = scalars_at_step(kind, 3);
    EncodedSpans want = expected.spans(state.grad, expected_param, kind);
    EncodedSpans got = run.spans(state.grad, param, kind);
    want.begin = got.begin = 3;
    want.end = got.end = 2 * kCodecBlockNumel + 101;
    optimizer_update(scalars, want);
    there->update(scalars, got);
    EXPECT_TRUE(same_bits(param, expected_param)) << name(kind);
    EXPECT_EQ(run.stored, expected.stored) << name(kind);
  }
}

TEST_P(StateElsewhere, LandsGradientsWithTheSameSums) {
  const auto there = machine(GetParam());
  for (const DType src_dtype : kFloatDTypes) {
    for (const DType dst_dtype : {src_dtype, DType::fp32}) {
      for (const bool add : {false, true}) {
        if (add && dst_dtype != DType::fp32) continue;
        Elements src(src_dtype, 3 * kGrainNumel), start(dst_dtype, 3 * kGrainNumel);
        fill_with_hard_values(src, 1);
        fill_with_hard_values(start, 2);
        // The first grain is finite, so that its sum says something.
        for (int64_t i = 0; i < kGrainNumel; ++i) {
          src.set_value(i, std::sin(static_cast<float>(i)));
          start.set_value(i, std::cos(static_cast<float>(i)));
        }
        Elements expected(start), run(start);
        std::vector<double> want(3, -1), got(3, -1);
        LandGradientSpans spans{.dst = expected.at(0),
                                .dst_dtype = dst_dtype,
                                .src = src.at(0),
                                .src_dtype = src_dtype,
                                .numel = src.numel(),
                                .add = add,
                                .grain_sum_of_squares = want.data()};
        land_gradient(spans);
        spans.dst = run.at(0);
        spans.grain_sum_of_squares = got.data();
        there->land(spans);
        EXPECT_TRUE(same_bits(run, expected)) << name(src_dtype) << " " << add;
        for (size_t g = 0; g < want.size(); ++g) {
          EXPECT_EQ(std::bit_cast<uint64_t>(got[g]), std::bit_cast<uint64_t>(want[g])) << g;
        }
      }
    }
  }
}

}  // namespace
}  // namespace strata::ops
