#include "tests/offload/toy_rig.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <utility>

namespace strata::offload {
namespace {

TrainingStateSpec spec_of(const TierSetup& setup, const ToyOptions& options) {
  TrainingStateSpec spec;
  spec.slots = options.slots;
  spec.param = Placement(setup.param, options.grains);
  for (size_t i = 0; i < kOptimizerKindCount; ++i) {
    spec.optimizer_state[i] = Placement(setup.state[i], options.grains);
  }
  const double on_device = setup.state[0].device;
  spec.grad = Placement({on_device, 1 - on_device - setup.grad_on_nvme, setup.grad_on_nvme},
                        options.grains);
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

ToyRig::ToyRig(const TierSetup& setup, ToyOptions options, UpdateFn update)
    : numel_(options.grains * kGrainNumel),
      gradients_(make_host_queue({"gradients", 1}, {}, recorder_)) {
  PipelineRigSetting setting;
  setting.spec = spec_of(setup, options);
  setting.staging_buffers = options.buffers;
  setting.overlap = options.overlap;
  setting.transfer_bytes = numel_ * sizeof(float);
  setting.path = directory_.path();
  setting.update_threads = options.update_threads;
  setting.checksums = options.checksums;
  setting.device.delay_seed = options.seed;
  setting.update_delay_seed = options.seed + 1;
  if (setting.spec.uses_nvme()) {
    pump_ = options.backend != nullptr
                ? make_pump(reads_, std::move(options.backend))
                : make_pump(reads_, options.faults ? &*options.faults : nullptr);
  }
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
    std::iota(values, values + numel_, 1000.0f * static_cast<float>(kind));
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
  return {values, values + numel_};
}

std::optional<std::string> ToyRig::difference(int updates) {
  const auto differs = [&](StateKind kind, const auto& expected) -> std::optional<std::string> {
    const std::vector<float> values = read(kind);
    for (size_t i = 0; i < values.size(); ++i) {
      const float wanted = expected(static_cast<float>(i));
      if (values[i] == wanted) continue;
      return std::string(name(kind)) + " " + std::to_string(i) + " is " +
             std::to_string(values[i]) + " and not " + std::to_string(wanted);
    }
    return std::nullopt;
  };
  const auto master = [&](float x) {
    float expected = 2000 + x;
    for (int update = 0; update < updates; ++update) expected += 1000 + x;
    return expected;
  };
  auto difference = differs(StateKind::master, master);
  if (!difference) difference = differs(StateKind::param, master);
  if (!difference) {
    difference = differs(StateKind::exp_avg,
                         [&](float x) { return 3000 + x + 2 * static_cast<float>(updates); });
  }
  if (!difference) {
    difference =
        differs(StateKind::exp_avg_sq, [&](float x) { return std::ldexp(4000 + x, updates); });
  }
  return difference;
}

void ToyRig::expect_state(int updates) { ASSERT_EQ(difference(updates).value_or(""), ""); }

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
