#include "engine/runtime/fingerprint.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <iterator>
#include <string>

#include "engine/zero/parameter_setting.h"

namespace strata::engine {

uint64_t state_hash(const Model& model, const Config& config, const Plan& plan) {
  std::string text;
  const auto add = [&](const auto&... values) {
    ((fmt::format_to(std::back_inserter(text), "{} ", values)), ...);
  };
  add(plan.layout.rank(), plan.layout.world_size(), plan.layout.stage(), plan.state.slots);
  add(name(plan.state.param_dtype), name(config.optimizer.kind));
  for (const auto& layer : model.layers) {
    for (const Parameter& p : layer->parameters()) {
      add(p.name, p.trainable);
      for (size_t i = 0; i < p.shape.rank; ++i) add(p.shape[i]);
    }
  }
  for (const Codec codec : plan.state.codecs) add(name(codec));
  for (const offload::SubGroup& group : plan.state.sub_groups) {
    add(group.grains.begin, group.grains.end);
  }
  return XXH3_64bits(text.data(), text.size());
}

uint64_t fingerprint(const Model& model, const Config& config, const Plan& plan,
                     uint64_t data_hash) {
  std::string text;
  const auto add = [&](const auto&... values) {
    ((fmt::format_to(std::back_inserter(text), "{} ", values)), ...);
  };
  add(model.description, data_hash, plan.commits(), plan.recovers_steps);
  add(model.vocab_size, model.features, model.classes);
  for (const auto& layer : model.layers) {
    add(layer->name());
    for (const Parameter& p : layer->parameters()) {
      const ParameterSetting setting = setting_of(p, config);
      add(p.name, p.trainable, setting.weight_decay, setting.lr_scale, p.init.value);
      for (size_t i = 0; i < p.shape.rank; ++i) add(p.shape[i]);
    }
  }
  const OptimizerConfig& optimizer = config.optimizer;
  const WarmupConfig& warmup = config.schedule.warmup;
  const OneCycleConfig& cycle = config.schedule.one_cycle;
  const LossScaleConfig& scale = config.loss_scale;
  add(plan.micro_batch.batch, plan.micro_batch.sequence, config.accumulation_steps, config.seed);
  add(name(config.dtype), config.gradient_clipping, config.stage, config.reduce_bucket_numel,
      config.persistent_numel, static_cast<int>(plan.order), static_cast<int>(plan.sums),
      static_cast<int>(config.reduction));
  add(scale.constant, scale.initial_power, scale.window, scale.hysteresis);
  add(scale.consecutive_hysteresis, scale.min_scale);
  add(name(optimizer.kind), optimizer.lr, optimizer.beta1, optimizer.beta2, optimizer.eps,
      optimizer.momentum, name(config.master_codec), name(config.moment_codec));
  add(static_cast<int>(config.schedule.kind));
  add(warmup.min_lr, warmup.max_lr, warmup.min_ratio, warmup.cos_min_ratio, warmup.num_steps,
      warmup.logarithmic, warmup.total_num_steps);
  add(cycle.min_lr, cycle.max_lr, cycle.first_steps, cycle.second_steps, cycle.first_stairs,
      cycle.second_stairs, cycle.decay_steps, cycle.lr_decay_rate);
  add(cycle.cycles_beta1, cycle.min_beta1, cycle.max_beta1, cycle.beta1_decay_rate);
  // Where the caller computes, it is the window that decides what is gathered ahead.
  add(config.overlap);
  for (const int64_t numel : plan.step.window_numel) add(numel);
  for (const Program* program : {&plan.step, &plan.evaluate}) {
    for (const Action& action : program->actions) {
      const bool collective = action.op == Action::Op::gather || action.op == Action::Op::reduce;
      if (collective) add(static_cast<int>(action.op), action.unit);
    }
  }
  return XXH3_64bits(text.data(), text.size());
}

}  // namespace strata::engine
