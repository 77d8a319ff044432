// The pipeline with an update that only adds numbers: every grain of every kind is brought, updated
// once and taken back, whatever the placement, the order, the number of buffers and the faults;
// nobody waits for more than asked; and a failure ends in the exception that caused it.
#include "offload/optimizer_pipeline.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <future>
#include <mutex>
#include <numeric>
#include <optional>
#include <random>
#include <thread>
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
  double grad_on_nvme = 0;  // a part of the gradients; the rest is where the update is
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
    {"all_on_nvme", kNvme, {kNvme, kNvme, kNvme}, 1},
    {"params_and_gradients_on_nvme", {0, 0.3, 0.7}, {kHost, kHost, kNvme}, 0.5},
    {"three_tiers", {0.5, 0.5, 0}, {TierFractions{0.2, 0.3, 0.5}, {0.2, 0.4, 0.4}, {0.2, 0.8, 0}}},
};

// Sub-groups in the order in which their state was read.
class ReadLog final : public TrafficSink {
 public:
  explicit ReadLog(TrafficSink& next) : next_(next) { order_.reserve(1000); }
  void record(const TrafficRecord& record) noexcept override {
    if (record.activity == Activity::nvme_read && record.tag.of_update) {
      const std::lock_guard lock(mutex_);
      order_.push_back(record.tag.index);
    }
    next_.record(record);
  }
  std::vector<int32_t> order() const {
    const std::lock_guard lock(mutex_);
    return order_;
  }

 private:
  TrafficSink& next_;
  mutable std::mutex mutex_;
  std::vector<int32_t> order_;
};

// One pipeline and all it stands on.
class Rig {
 public:
  Rig(const TierSetup& setup, int64_t sub_group_grains, int buffers, bool overlap, uint64_t seed,
      UpdateFn update, std::optional<io::FaultPlan> faults = {}, int slots = 1)
      : device_(make_host_device({.delay_seed = seed}, recorder_)),
        compute_(device_->create_queue({"compute", 1})),
        copy_in_(device_->create_queue({"copy in", 1})),
        param_in_(device_->create_queue({"parameters in", 1})),
        param_out_(device_->create_queue({"parameters out", 1})),
        gradients_(make_host_queue({"gradients", 1}, {}, recorder_)),
        host_(make_host_queue({"host", 2}, {.delay_seed = seed + 1}, recorder_)) {
    TrainingStateSpec spec;
    spec.slots = slots;
    spec.param = Placement(setup.param, kGrains);
    for (size_t i = 0; i < kOptimizerKindCount; ++i) {
      spec.optimizer_state[i] = Placement(setup.state[i], kGrains);
    }
    const double on_device = setup.state[0].device;
    spec.grad =
        Placement({on_device, 1 - on_device - setup.grad_on_nvme, setup.grad_on_nvme}, kGrains);
    spec.param_dtype = DType::fp32;
    spec.sub_groups =
        cut_sub_groups(sub_group_grains, {spec.param, spec.grad, spec.optimizer_state});
    const StagingLayout staging = staging_layout(spec, buffers);

    PlanSummary plan;
    plan.reservations = reservations_for(spec);
    for (const Reservation& r : reservations_for(staging)) plan.reservations.push_back(r);
    plan.reservations.push_back({Tier::host, StateKind::other, "transfer", kTransferBytes});
    plan.budget_bytes.fill(UINT64_MAX);
    tiers_.emplace(*device_, plan);
    transfer_ = tiers_->claim("transfer");

    if (spec.uses_nvme()) {
      pump_ = make_pump(reads_, faults ? &*faults : nullptr);
      SlotLayout layout = spec.slot_layout();
      SlotStore::Files files{
          io::BlockFile::create_scratch(directory_.path(), layout.file_bytes(), {}, log_), {}};
      if (slots > 1) {
        files.journal = io::BlockFile::create_scratch(directory_.path(),
                                                      SlotStore::journal_bytes(layout), {}, log_);
      }
      store_.emplace(std::move(layout), std::move(files), *pump_,
                     std::span<std::byte>(transfer_.data(), transfer_.bytes()));
    }
    ShardFiles shards;
    if (const uint64_t bytes = shard_file_bytes(spec, StateKind::param)) {
      shards.param = io::BlockFile::create_scratch(directory_.path(), bytes, {}, log_);
    }
    if (const uint64_t bytes = shard_file_bytes(spec, StateKind::grad)) {
      shards.grad = io::BlockFile::create_scratch(directory_.path(), bytes, {}, log_);
    }
    state_.emplace(spec, *tiers_, store_ ? &*store_ : nullptr, pump_.get(), *copy_in_,
                   std::move(shards));
    pipeline_.emplace(
        OptimizerPipeline::Parts{*state_, pump_.get(), *host_, *compute_, *param_in_, *param_out_,
                                 recorder_},
        staging, *tiers_,
        [this, update = std::move(update)](const UpdateSpans& spans, Queue& queue) {
          queue.run([this] { ++updates_; });
          update(spans, queue);
        },
        overlap);
    order_.resize(spec.sub_groups.size());
    std::iota(order_.begin(), order_.end(), 0);
    std::shuffle(order_.begin(), order_.end(), std::mt19937_64(seed));
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
  Queue& gradients() { return *gradients_; }
  int updates() const { return updates_; }                      // begun
  const std::vector<int32_t>& order() const { return order_; }  // a shuffled one
  std::vector<int32_t> reads() const { return reads_.order(); }

  // Leaves everything under way.
  void start_step() {
    pipeline_->read_ahead(order_);
    for (int32_t sub_group : order_) pipeline_->submit(sub_group);
  }
  // As a forward pass does it.
  void await_parameters() {
    for (int32_t sub_group : order_) pipeline_->parameters(sub_group).wait();
  }
  void commit() {
    pipeline_->settle();
    store_->commit({});
  }
  // What was promised is what was moved.
  void expect_promises_kept() {
    pipeline_->settle();
    EXPECT_EQ(pipeline_->promised(), recorder_.link_bytes(true));
  }

 private:
  static constexpr uint64_t kTransferBytes = kGrains * kGrainNumel * 4;
  std::byte* of(const SubGroup& group) const {
    return transfer_.data() + static_cast<size_t>(group.grains.begin * kGrainNumel) * sizeof(float);
  }

  TemporaryDirectory directory_;
  NullLogSink log_;
  Recorder recorder_{0};
  ReadLog reads_{recorder_};
  std::unique_ptr<Device> device_;
  std::unique_ptr<Queue> compute_;
  std::unique_ptr<Queue> copy_in_;
  std::unique_ptr<Queue> param_in_;
  std::unique_ptr<Queue> param_out_;
  std::unique_ptr<Queue> gradients_;
  std::unique_ptr<Queue> host_;
  std::atomic<int> updates_ = 0;
  std::optional<TierManager> tiers_;
  Arena transfer_;
  std::unique_ptr<Pump> pump_;
  std::optional<SlotStore> store_;
  std::optional<TrainingState> state_;
  std::vector<int32_t> order_;  // the pipeline reads ahead in it to its end
  std::optional<OptimizerPipeline> pipeline_;
};

// master += grad, exp_avg += 2, exp_avg_sq *= 2, param = master
void toy_update(const UpdateSpans& spans, Queue& queue) {
  queue.run([spans] {
    auto* master = reinterpret_cast<float*>(spans.state[0]);
    if (spans.purpose == Purpose::restoration) {
      std::copy_n(master, spans.grains.numel(), reinterpret_cast<float*>(spans.param));
      return;
    }
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
  rig.start_step();
  rig.await_parameters();
  rig.start_step();
  rig.expect_promises_kept();
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

// A skipped step leaves the state as it was; the next one goes on with what was read for it, and
// looking at the state drops that.
TEST(OptimizerPipelineSkipTest, WhatIsReadAndNotSubmittedChangesNothing) {
  for (const bool look : {false, true}) {
    for (const TierSetup& setup : kSetups) {
      Rig rig(setup, 4, 2, true, 3, toy_update);
      rig.fill();
      const auto before = rig.read(StateKind::master);
      rig.pipeline().read_ahead(rig.order());
      if (look) {
        EXPECT_EQ(rig.read(StateKind::master), before) << setup.name;
      }
      rig.start_step();
      EXPECT_EQ(rig.read(StateKind::exp_avg)[5], 3007) << setup.name;
      rig.expect_promises_kept();
      rig.pipeline().read_ahead(rig.order());  // and goes down with reads under way
    }
  }
}

TEST(OptimizerPipelineOrderTest, StateIsReadInTheOrderAskedFor) {
  for (const bool ahead : {true, false}) {
    Rig rig(kSetups[2], 2, 1, true, 7, toy_update);
    rig.fill();
    std::vector<int32_t> reversed(rig.order().rbegin(), rig.order().rend());
    if (ahead) rig.pipeline().read_ahead(reversed);
    for (int32_t sub_group : reversed) rig.pipeline().submit(sub_group);
    rig.expect_promises_kept();
    EXPECT_EQ(rig.reads(), reversed);
  }
}

// The next step's reads wait for the last step's updates, each for its own.
TEST(OptimizerPipelineOrderTest, ReadsAheadFollowWhatIsUnderWay) {
  Rig rig(kSetups[3], 2, 1, true, 9, toy_update);
  rig.fill();
  rig.start_step();
  rig.pipeline().read_ahead(rig.order());
  rig.await_parameters();
  rig.start_step();
  rig.expect_promises_kept();
  std::vector<int32_t> twice = rig.order();
  twice.insert(twice.end(), rig.order().begin(), rig.order().end());
  EXPECT_EQ(rig.reads(), twice);
  EXPECT_EQ(rig.read(StateKind::exp_avg)[5], 3009);
}

// One update stands still, the last one: with one buffer state arrives in order. The others'
// parameters can be had.
TEST(OptimizerPipelineWaitTest, ASubGroupsParametersWaitForNoOther) {
  for (const TierSetup& setup : kSetups) {
    if (setup.state[0].device > 0) continue;  // updated in the order of the device's queue
    std::promise<void> go;
    const std::shared_future<void> gone = go.get_future().share();
    int32_t held = -1;
    Rig rig(setup, 4, 1, true, 0, [&](const UpdateSpans& spans, Queue& queue) {
      if (spans.sub_group == held) queue.run([&gone] { gone.wait(); });
      toy_update(spans, queue);
    });
    rig.fill();
    held = rig.order().back();
    for (int32_t sub_group : rig.order()) rig.pipeline().submit(sub_group);
    for (int32_t sub_group : rig.order()) {
      if (sub_group == held) continue;
      rig.pipeline().parameters(sub_group).wait();
      EXPECT_TRUE(rig.pipeline().has_parameters(sub_group));
    }
    EXPECT_FALSE(rig.pipeline().has_parameters(held)) << setup.name;
    go.set_value();
    rig.pipeline().parameters(held).wait();
    EXPECT_EQ(rig.read(StateKind::exp_avg)[5], 3007) << setup.name;
  }
}

// An update starts where its gradient is complete, not before.
TEST(OptimizerPipelineWaitTest, AnUpdateWaitsForItsGradient) {
  for (const TierSetup& setup : kSetups) {
    Rig rig(setup, 4, 2, true, 0, toy_update);
    rig.fill();
    std::promise<void> go;
    const std::future<void> gone = go.get_future();
    rig.gradients().run([&gone] { gone.wait(); });
    const Event gradient = rig.gradients().record();
    for (int32_t sub_group : rig.order())
      rig.pipeline().submit(sub_group, Purpose::update, gradient);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    EXPECT_EQ(rig.updates(), 0) << setup.name;
    go.set_value();
    EXPECT_EQ(rig.read(StateKind::exp_avg)[5], 3007) << setup.name;
  }
}

class Speculation : public testing::TestWithParam<TierSetup> {
 protected:
  Speculation() : rig_(GetParam(), 4, 2, true, 11, toy_update, {}, /*slots=*/2) { rig_.fill(); }

  void speculate() {
    rig_.pipeline().read_ahead(rig_.order());
    for (int32_t sub_group : rig_.order()) {
      rig_.pipeline().submit(sub_group, Purpose::speculation);
    }
    rig_.await_parameters();
  }
  // As after that many steps.
  void expect_state(int steps) {
    const auto exp_avg = rig_.read(StateKind::exp_avg);
    const auto param = rig_.read(StateKind::param);
    const auto master = rig_.read(StateKind::master);
    for (size_t i = 0; i < exp_avg.size(); ++i) {
      const auto x = static_cast<float>(i);
      float expected = 2000 + x;
      for (int step = 0; step < steps; ++step) expected += 1000 + x;
      ASSERT_EQ(exp_avg[i], 3000 + x + 2 * static_cast<float>(steps)) << i;
      ASSERT_EQ(master[i], expected) << i;
      ASSERT_EQ(param[i], expected) << i;
    }
    rig_.expect_promises_kept();
  }
  Rig rig_;
};

INSTANTIATE_TEST_SUITE_P(OnNvme, Speculation, testing::Values(kSetups[2], kSetups[3]),
                         [](const auto& tested) { return tested.param.name; });

TEST_P(Speculation, CountsWhenItIsCommitted) {
  speculate();
  rig_.commit();
  expect_state(1);
}

// All of it from the slot that still counts: once, not twice.
TEST_P(Speculation, IsDoneAgainFromTheCurrentSlot) {
  speculate();
  for (int32_t sub_group : rig_.order()) {
    EXPECT_FALSE(rig_.pipeline().recall(sub_group));
    rig_.pipeline().submit(sub_group);
  }
  rig_.await_parameters();
  rig_.commit();
  expect_state(1);
}

TEST_P(Speculation, LeavesNoTraceWhenItIsRestored) {
  for (const bool committed : {false, true}) {
    speculate();
    rig_.pipeline().settle();
    for (int32_t sub_group : rig_.order()) {
      rig_.pipeline().submit(sub_group, Purpose::restoration);
    }
    rig_.await_parameters();
    rig_.expect_promises_kept();
    EXPECT_EQ(rig_.read(StateKind::param), rig_.read(StateKind::master));
    if (!committed) {
      speculate();
      rig_.commit();
    }
  }
  expect_state(1);
}

// One buffer is held by an update that has begun: what comes after it can be recalled, and counts
// only when it is submitted again.
TEST_P(Speculation, IsRecalledWhereItHasNotBegun) {
  std::promise<void> go;
  const std::shared_future<void> gone = go.get_future().share();
  Rig rig(
      GetParam(), 4, 1, true, 0,
      [&](const UpdateSpans& spans, Queue& queue) {
        queue.run([&gone] { gone.wait(); });
        toy_update(spans, queue);
      },
      {}, /*slots=*/2);
  rig.fill();
  const LinkBytes before = rig.pipeline().promised();
  for (int32_t sub_group : rig.order()) rig.pipeline().submit(sub_group, Purpose::speculation);
  size_t recalled = 0;
  for (size_t i = 1; i < rig.order().size(); ++i)
    if (rig.pipeline().recall(rig.order()[i])) ++recalled;
  EXPECT_EQ(recalled, rig.order().size() - 1);
  go.set_value();
  rig.expect_promises_kept();
  EXPECT_EQ(rig.reads(), std::vector<int32_t>{rig.order().front()});
  EXPECT_NE(rig.pipeline().promised(), before);
  for (size_t i = 1; i < rig.order().size(); ++i) rig.pipeline().submit(rig.order()[i]);
  rig.commit();
  rig.expect_promises_kept();
  EXPECT_EQ(rig.read(StateKind::exp_avg)[5], 3007);
}

TEST(OptimizerPipelineFailureTest, ADiskErrorEndsTheStepAsIoError) {
  // Filling takes 3 kinds * 23 grains * 16 KiB / 64 KiB transfers; the failure is behind those.
  const io::FaultPlan faults{.fail_at = 30};
  Rig rig(kSetups[2], 4, 3, true, 0, toy_update, faults);
  rig.fill();
  rig.start_step();
  EXPECT_THROW(rig.await_parameters(), IoError);
  EXPECT_THROW(rig.await_parameters(), IoError) << "a failed pipeline stays failed";
  EXPECT_THROW(rig.pipeline().settle(), IoError);
}

// Wherever a transfer fails, it is told at the latest when the pipeline is settled; and a pipeline
// that is left alone goes down with its failure.
TEST(OptimizerPipelineFailureTest, NoFailureIsSilentAndNoneHangs) {
  bool failed = true;
  for (int64_t fail_at = 20; failed; fail_at += 5) {
    ASSERT_LT(fail_at, 200);
    const io::FaultPlan faults{.fail_at = fail_at};
    const auto make = [&] {
      return std::make_unique<Rig>(kSetups[3], 4, 2, true, 0, toy_update, faults);
    };
    auto rig = make();
    failed = false;
    try {
      rig->fill();
      rig->start_step();
      rig->await_parameters();
      rig->start_step();
      rig->pipeline().settle();
    } catch (const IoError&) {
      failed = true;
    }
    if (!failed) continue;
    try {
      auto left = make();
      left->fill();
      left->start_step();
    } catch (const IoError&) {
    }
  }
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
    rig.start_step();
    EXPECT_THROW(rig.pipeline().drain(), CorruptionError) << setup.name;
  }
}

TEST(OptimizerPipelineFailureTest, AnUpdateThatCannotBeEnqueuedEndsTheStep) {
  const auto failing = [](const UpdateSpans&, Queue&) { throw DeviceError("no such kernel"); };
  Rig rig(kSetups[3], 4, 2, true, 0, failing);
  rig.fill();
  rig.start_step();
  EXPECT_THROW(rig.pipeline().drain(), DeviceError);
}

TEST(OptimizerPipelineEndTest, GoesDownWithWorkUnderWay) {
  for (const TierSetup& setup : kSetups) {
    for (uint64_t seed = 0; seed < 4; ++seed) {
      Rig rig(setup, 2, 3, true, seed, toy_update);
      rig.fill();
      rig.start_step();
      if (seed % 2 == 1) rig.pipeline().read_ahead(rig.order());
    }
  }
}

}  // namespace
}  // namespace strata::offload
