#include "tests/offload/toy_rig.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <utility>

namespace strata::offload {
namespace {

constexpr int64_t kGrains = 23;

TrainingStateSpec spec_of(const TierSetup& setup, const ToyOptions& options) {
  TrainingStateSpec spec;
  spec.slots = options.slots;
  spec.param = Placement(setup.param, kGrains);
  for (size_t i = 0; i < kOptimizerKindCount; ++i) {
    spec.optimizer_state[i] = Placement(setup.state[i], kGrains);
  }
  const double on_device = setup.state[0].device;
  spec.grad =
      Placement({on_device, 1 - on_device - setup.grad_on_nvme, setup.grad_on_nvme}, kGrains);
  spec.param_dtype = DType::fp32;
  spec.sub_groups =
      cut_sub_groups(options.sub_group_grains, {spec.param, spec.grad, spec.optimizer_state});
  return spec;
}

}  // namespace

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

ToyRig::ToyRig(const TierSetup& setup, const ToyOptions& options, UpdateFn update)
    : gradients_(make_host_queue({"gradients", 1}, {}, recorder_)) {
  PipelineRigSetting setting;
  setting.spec = spec_of(setup, options);
  setting.staging_buffers = options.buffers;
  setting.overlap = options.overlap;
  setting.transfer_bytes = kGrains * kGrainNumel * sizeof(float);
  setting.path = directory_.path();
  setting.update_threads = 2;
  setting.device.delay_seed = options.seed;
  setting.update_delay_seed = options.seed + 1;
  if (setting.spec.uses_nvme())
    pump_ = make_pump(reads_, options.faults ? &*options.faults : nullptr);
  order_.resize(setting.spec.sub_groups.size());
  std::iota(order_.begin(), order_.end(), 0);
  std::shuffle(order_.begin(), order_.end(), std::mt19937_64(options.seed));
  rig_.emplace(setting, pump_.get(), recorder_,
               [this, update = std::move(update)](const UpdateSpans& spans, Queue& queue) {
                 queue.run([this] { ++updates_; });
                 update(spans, queue);
               });
}

void ToyRig::fill() {
  for (StateKind kind : {StateKind::param, StateKind::grad, StateKind::master, StateKind::exp_avg,
                         StateKind::exp_avg_sq}) {
    auto* values = rig_->transfer().as<float>();
    std::iota(values, values + kGrains * kGrainNumel, 1000.0f * static_cast<float>(kind));
    for (const SubGroup& group : rig_->spec().sub_groups) {
      rig_->state().write(kind, group.grains, of(group));
    }
  }
}

std::vector<float> ToyRig::read(StateKind kind) {
  pipeline().settle();
  for (const SubGroup& group : rig_->spec().sub_groups) {
    rig_->state().read(kind, group.grains, of(group));
  }
  const auto* values = rig_->transfer().as<float>();
  return {values, values + kGrains * kGrainNumel};
}

void ToyRig::expect_state(int updates) {
  const auto master = read(StateKind::master);
  const auto exp_avg = read(StateKind::exp_avg);
  const auto exp_avg_sq = read(StateKind::exp_avg_sq);
  const auto param = read(StateKind::param);
  for (size_t i = 0; i < master.size(); ++i) {
    const auto x = static_cast<float>(i);
    float expected = 2000 + x;
    for (int update = 0; update < updates; ++update) expected += 1000 + x;
    ASSERT_EQ(master[i], expected) << i;
    ASSERT_EQ(exp_avg[i], 3000 + x + 2 * static_cast<float>(updates)) << i;
    ASSERT_EQ(exp_avg_sq[i], std::ldexp(4000 + x, updates)) << i;
    ASSERT_EQ(param[i], expected) << i;
  }
}

void ToyRig::start_step() {
  pipeline().read_ahead(order_);
  for (int32_t sub_group : order_) pipeline().submit(sub_group);
}

void ToyRig::await_parameters() {
  for (int32_t sub_group : order_) pipeline().parameters(sub_group).wait();
}

void ToyRig::commit() {
  pipeline().settle();
  rig_->store().commit({});
}

void ToyRig::expect_promises_kept() {
  pipeline().settle();
  LinkBytes promised = pipeline().promised();
  if (const SlotStore* const store = rig_->state().store()) {
    promised[static_cast<size_t>(Activity::nvme_write)] += store->promised_bytes();
  }
  EXPECT_EQ(promised, recorder_.link_bytes(Account::update));
}

std::byte* ToyRig::of(const SubGroup& group) const {
  return rig_->transfer().data() +
         static_cast<size_t>(group.grains.begin * kGrainNumel) * sizeof(float);
}

}  // namespace strata::offload
