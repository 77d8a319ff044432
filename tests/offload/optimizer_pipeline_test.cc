// The pipeline with an update that only adds numbers: every grain of every kind is brought, updated
// once and taken back, whatever the placement, the number of buffers and the faults; and a failure
// ends in the exception that caused it.
#include "offload/optimizer_pipeline.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <optional>
#include <vector>

#include "strata/error.h"
#include "tests/offload/offload_fixture.h"

namespace strata::offload {
namespace {

constexpr int64_t kGrains = 23;

struct TierSetup {
  const char* name;
  TierFractions param;
  std::array<TierFractions, kOptimizerKindCount> state;
};

void PrintTo(const TierSetup& setup, std::ostream* out) { *out << setup.name; }

constexpr TierFractions kDevice = {1, 0, 0};
constexpr TierFractions kHost = {0, 1, 0};
constexpr TierFractions kNvme = {0, 0, 1};

const TierSetup kSetups[] = {
    {"device", kDevice, {kDevice, kDevice, kDevice}},
    {"host", kHost, {kHost, kHost, kHost}},
    {"nvme_params_on_device", kDevice, {kNvme, kNvme, kNvme}},
    {"nvme_params_on_host", kHost, {kNvme, kNvme, kNvme}},
    {"moments_on_nvme", kDevice, {kHost, kNvme, kNvme}},
    {"three_tiers", {0.5, 0.5, 0}, {TierFractions{0.2, 0.3, 0.5}, {0.2, 0.4, 0.4}, {0.2, 0.8, 0}}},
};

// One pipeline and all it stands on.
class Rig {
 public:
  Rig(const TierSetup& setup, int64_t sub_group_grains, int buffers, bool overlap, uint64_t seed,
      UpdateFn update, std::optional<io::FaultPlan> faults = {})
      : device_(make_host_device({.delay_seed = seed}, recorder_)),
        compute_(device_->create_queue({"compute", 1})),
        copy_in_(device_->create_queue({"copy in", 1})),
        state_out_(device_->create_queue({"state out", 1})),
        host_(make_host_queue({"host", 2}, {.delay_seed = seed + 1}, recorder_)) {
    TrainingStateSpec spec;
    spec.param = Placement(setup.param, kGrains);
    for (size_t i = 0; i < kOptimizerKindCount; ++i) {
      spec.optimizer_state[i] = Placement(setup.state[i], kGrains);
    }
    const double on_device = setup.state[0].device;
    spec.grad = Placement({on_device, 1 - on_device, 0}, kGrains);
    spec.param_dtype = DType::fp32;
    spec.sub_groups = cut_sub_groups(sub_group_grains, spec.param, spec.optimizer_state);
    const StagingLayout staging = staging_layout(spec, buffers);

    PlanSummary plan;
    plan.reservations = reservations_for(spec);
    for (const Reservation& r : reservations_for(staging)) plan.reservations.push_back(r);
    plan.reservations.push_back({Tier::host, StateKind::other, "transfer", kTransferBytes});
    plan.budget_bytes.fill(UINT64_MAX);
    tiers_.emplace(*device_, plan);
    transfer_ = tiers_->claim("transfer");

    if (spec.uses_nvme()) {
      pump_ = make_pump(recorder_, faults ? &*faults : nullptr);
      SlotLayout layout = spec.slot_layout();
      SlotStore::Files files{
          io::BlockFile::create_scratch(directory_.path(), layout.file_bytes(), {}, log_), {}};
      store_.emplace(std::move(layout), std::move(files), *pump_, std::span<std::byte>());
    }
    state_.emplace(spec, *tiers_, store_ ? &*store_ : nullptr, pump_.get(), *copy_in_);
    pipeline_.emplace(OptimizerPipeline::Parts{*state_, pump_.get(), *host_, *compute_, *copy_in_,
                                               *state_out_, recorder_},
                      staging, *tiers_, std::move(update), overlap);
  }

  // Element i of `kind` becomes i + 1000 * kind.
  void fill() {
    for (StateKind kind : {StateKind::param, StateKind::grad, StateKind::master, StateKind::exp_avg,
                           StateKind::exp_avg_sq}) {
      auto* values = transfer_.as<float>();
      std::iota(values, values + kGrains * kGrainNumel, 1000.0f * static_cast<float>(kind));
      for (const SubGroup& group : state_->spec().sub_groups) {
        state_->write(kind, group.grains, of(group));
      }
    }
  }
  std::vector<float> read(StateKind kind) {
    pipeline_->settle();
    for (const SubGroup& group : state_->spec().sub_groups) {
      state_->read(kind, group.grains, of(group));
    }
    return {transfer_.as<float>(), transfer_.as<float>() + kGrains * kGrainNumel};
  }
  OptimizerPipeline& pipeline() { return *pipeline_; }
  void step() {
    pipeline_->read_ahead();
    for (const SubGroup& group : state_->spec().sub_groups) pipeline_->submit(group.index);
    pipeline_->drain();
  }

 private:
  static constexpr uint64_t kTransferBytes = kGrains * kGrainNumel * 4;
  std::byte* of(const SubGroup& group) const {
    return transfer_.data() + static_cast<size_t>(group.grains.begin * kGrainNumel) * sizeof(float);
  }

  TemporaryDirectory directory_;
  NullLogSink log_;
  Recorder recorder_{0};
  std::unique_ptr<Device> device_;
  std::unique_ptr<Queue> compute_;
  std::unique_ptr<Queue> copy_in_;
  std::unique_ptr<Queue> state_out_;
  std::unique_ptr<Queue> host_;
  std::optional<TierManager> tiers_;
  Arena transfer_;
  std::unique_ptr<Pump> pump_;
  std::optional<SlotStore> store_;
  std::optional<TrainingState> state_;
  std::optional<OptimizerPipeline> pipeline_;
};

// master += grad, exp_avg += 2, exp_avg_sq *= 2, param = master
void toy_update(const UpdateSpans& spans, Queue& queue) {
  queue.run([spans] {
    auto* master = reinterpret_cast<float*>(spans.state[0]);
    auto* exp_avg = reinterpret_cast<float*>(spans.state[1]);
    auto* exp_avg_sq = reinterpret_cast<float*>(spans.state[2]);
    const auto* grad = reinterpret_cast<const float*>(spans.grad);
    auto* param = reinterpret_cast<float*>(spans.param);
    for (int64_t i = 0; i < spans.grains.numel(); ++i) {
      master[i] += grad[i];
      exp_avg[i] += 2;
      exp_avg_sq[i] *= 2;
      param[i] = master[i];
    }
  });
}

class OptimizerPipelineTest
    : public testing::TestWithParam<std::tuple<TierSetup, int64_t, int, bool, uint64_t>> {};

TEST_P(OptimizerPipelineTest, UpdatesEveryGrainOnceAStep) {
  const auto& [setup, sub_group_grains, buffers, overlap, seed] = GetParam();
  const io::FaultPlan faults{.seed = seed + 1,
                             .short_transfer_permille = 150,
                             .error_permille = 0,
                             .again_permille = 100,
                             .delay_permille = 200,
                             .max_delay_us = 300,
                             .reorder = true,
                             .fail_at = -1};
  Rig rig(setup, sub_group_grains, buffers, overlap, seed, toy_update, faults);
  rig.fill();
  rig.step();
  rig.step();
  const auto master = rig.read(StateKind::master);
  const auto exp_avg = rig.read(StateKind::exp_avg);
  const auto exp_avg_sq = rig.read(StateKind::exp_avg_sq);
  const auto param = rig.read(StateKind::param);
  for (size_t i = 0; i < master.size(); ++i) {
    const auto x = static_cast<float>(i);
    float expected = 2000 + x;
    expected += 1000 + x;
    expected += 1000 + x;
    ASSERT_EQ(master[i], expected) << i;
    ASSERT_EQ(exp_avg[i], 3000 + x + 4) << i;
    ASSERT_EQ(exp_avg_sq[i], (4000 + x) * 4) << i;
    ASSERT_EQ(param[i], expected) << i;
  }
}

std::string case_name(const testing::TestParamInfo<OptimizerPipelineTest::ParamType>& tested) {
  const auto& [setup, grains, buffers, overlap, seed] = tested.param;
  return std::string(setup.name) + "_" + std::to_string(grains) + "_" + std::to_string(buffers) +
         (overlap ? "_overlap" : "_serial") + "_seed" + std::to_string(seed);
}

INSTANTIATE_TEST_SUITE_P(All, OptimizerPipelineTest,
                         testing::Combine(testing::ValuesIn(kSetups), testing::Values(1, 4, 64),
                                          testing::Values(1, 3), testing::Bool(),
                                          testing::Values(0, 5)),
                         case_name);

// A skipped step leaves the state as it was, and the next one goes on from it.
TEST(OptimizerPipelineSkipTest, DiscardingChangesNothing) {
  for (const TierSetup& setup : kSetups) {
    Rig rig(setup, 4, 2, true, 3, toy_update);
    rig.fill();
    const auto before = rig.read(StateKind::master);
    rig.pipeline().read_ahead();
    rig.pipeline().discard();
    EXPECT_EQ(rig.read(StateKind::master), before) << setup.name;
    rig.step();
    EXPECT_EQ(rig.read(StateKind::exp_avg)[5], 3007) << setup.name;
    rig.pipeline().read_ahead();  // and goes down with reads under way
  }
}

TEST(OptimizerPipelineFailureTest, ADiskErrorEndsTheStepAsIoError) {
  // Filling takes 3 kinds * 23 grains * 16 KiB / 64 KiB transfers; the failure is behind those.
  const io::FaultPlan faults{.fail_at = 30};
  Rig rig(kSetups[2], 4, 3, true, 0, toy_update, faults);
  rig.fill();
  EXPECT_THROW(rig.step(), IoError);
  EXPECT_THROW(rig.step(), IoError) << "a failed pipeline stays failed";
}

TEST(OptimizerPipelineFailureTest, AnUpdateThatThrowsEndsTheStepWithItsException) {
  const auto failing = [](const UpdateSpans& spans, Queue& queue) {
    if (spans.sub_group == 3) {
      queue.run([] { throw CorruptionError("sub-group 3 is bad"); });
    } else {
      toy_update(spans, queue);
    }
  };
  for (const TierSetup& setup : kSetups) {
    Rig rig(setup, 4, 2, true, 0, failing);
    rig.fill();
    EXPECT_THROW(rig.step(), CorruptionError) << setup.name;
  }
}

TEST(OptimizerPipelineFailureTest, AnUpdateThatCannotBeEnqueuedEndsTheStep) {
  const auto failing = [](const UpdateSpans&, Queue&) { throw DeviceError("no such kernel"); };
  Rig rig(kSetups[3], 4, 2, true, 0, failing);
  rig.fill();
  EXPECT_THROW(rig.step(), DeviceError);
}

}  // namespace
}  // namespace strata::offload
