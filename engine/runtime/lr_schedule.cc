#include "engine/runtime/lr_schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "strata/error.h"

namespace strata::engine {
namespace {

// Sums and products are in DeepSpeed's order, so that the bits are its own as far as log and cos
// are the same.

double as_double(int64_t steps) { return static_cast<double>(steps); }

// How far the warm-up is at an iteration of it: from 0 on, towards 1.
double risen_part(const WarmupConfig& warmup, int64_t iteration, int64_t steps) {
  if (!warmup.logarithmic) return as_double(iteration) / as_double(steps);
  return 1.0 / std::log(as_double(steps)) * std::log(as_double(iteration + 1));
}

double decayed_part(const WarmupConfig& warmup, int64_t iteration, int64_t steps) {
  const auto left = as_double(warmup.total_num_steps - iteration);
  return std::max(0.0, left / std::max(1.0, as_double(warmup.total_num_steps - steps)));
}

// One iteration ahead of the linear decay, as DeepSpeed counts.
double cosine_part(const WarmupConfig& warmup, int64_t iteration, int64_t steps) {
  const auto passed = as_double(iteration - steps + 1);
  const auto decaying = as_double(std::max<int64_t>(1, warmup.total_num_steps - steps));
  const double progress = std::min(1.0, passed / decaying);
  const double height = (1 + std::cos(std::numbers::pi * progress)) / 2;
  return std::max(0.0, warmup.cos_min_ratio + (1.0 - warmup.cos_min_ratio) * height);
}

double warmup_lr(const Config& config, int64_t iteration) {
  const WarmupConfig& warmup = config.schedule.warmup;
  const bool cosine = config.schedule.kind == ScheduleKind::warmup_cosine;
  if (iteration < 0) return cosine ? 0.0 : warmup.min_lr;
  const int64_t steps = std::max<int64_t>(2, warmup.num_steps);
  const bool rises = iteration < steps;
  double part = rises ? risen_part(warmup, iteration, steps) : 1.0;
  if (cosine) {
    const double ratio = rises ? warmup.min_ratio + part * (1.0 - warmup.min_ratio)
                               : cosine_part(warmup, iteration, steps);
    return config.optimizer.lr * ratio;
  }
  if (!rises && config.schedule.kind == ScheduleKind::warmup_decay) {
    part = decayed_part(warmup, iteration, steps);
  }
  return warmup.min_lr + (warmup.max_lr - warmup.min_lr) * part;
}

// The iterations of a cycle, up and down.
double cycle_size(const OneCycleConfig& cycle) {
  return as_double(cycle.first_steps) + as_double(cycle.second_steps);
}

// How high the cycle stands after an iteration, from 0 to 1.
double height(const OneCycleConfig& cycle, int64_t iteration) {
  const auto first = as_double(cycle.first_steps);
  const double size = cycle_size(cycle);
  const double first_part = first / size;
  const auto passed = as_double(iteration + 1);
  const double x = 1.0 + passed / size - std::floor(1 + passed / size);
  const bool rises = x <= first_part;
  const int64_t stairs = rises ? cycle.first_stairs : cycle.second_stairs;
  if (stairs == 0) return rises ? x / first_part : (x - 1) / (first_part - 1);
  const double in_cycle = std::fmod(passed, size);
  const double stair = in_cycle <= first
                           ? in_cycle * as_double(stairs) / first
                           : (size - in_cycle) * as_double(stairs) / as_double(cycle.second_steps);
  return std::floor(stair) / as_double(stairs);
}

// What an iteration after the cycle divides the rate by, or multiplies the momentum with.
double decay_factor(const OneCycleConfig& cycle, int64_t iteration, double rate) {
  if (cycle.decay_steps == 0) return 1.0;
  const double passed = as_double(iteration) - cycle_size(cycle) + 1;
  return 1 + rate * (passed / as_double(cycle.decay_steps));
}

double one_cycle_lr(const OneCycleConfig& cycle, int64_t iteration) {
  if (iteration < 0) return cycle.min_lr;
  if (as_double(iteration) < cycle_size(cycle)) {
    return cycle.min_lr + (cycle.max_lr - cycle.min_lr) * height(cycle, iteration);
  }
  return cycle.min_lr / decay_factor(cycle, iteration, cycle.lr_decay_rate);
}

// Highest where the learning rate is lowest, but for the first step's.
double one_cycle_beta1(const OneCycleConfig& cycle, int64_t iteration) {
  if (iteration < 0) return cycle.min_beta1;
  if (as_double(iteration) < cycle_size(cycle)) {
    return cycle.max_beta1 - (cycle.max_beta1 - cycle.min_beta1) * height(cycle, iteration);
  }
  return cycle.max_beta1 * decay_factor(cycle, iteration, cycle.beta1_decay_rate);
}

}  // namespace

StepRates step_rates(const Config& config, int64_t step) {
  constexpr double kOneCycleBeta2 = 0.99;
  const ScheduleConfig& schedule = config.schedule;
  const OneCycleConfig& cycle = schedule.one_cycle;
  const int64_t iteration = step - 2;
  StepRates rates{config.optimizer.lr, config.optimizer.beta1, config.optimizer.beta2};
  if (schedule.kind == ScheduleKind::constant) return rates;
  if (schedule.kind != ScheduleKind::one_cycle) {
    rates.lr = warmup_lr(config, iteration);
    return rates;
  }
  rates.lr = one_cycle_lr(cycle, iteration);
  if (!cycle.cycles_beta1) return rates;
  rates.beta1 = one_cycle_beta1(cycle, iteration);
  rates.beta2 = kOneCycleBeta2;
  if (rates.beta1 < 1) return rates;
  throw ConfigError(
      fmt::format("OneCycle's momentum has grown to {:.3g} at step {} and has to stay below 1: "
                  "lower \"scheduler.params.decay_mom_rate\", or train no further",
                  rates.beta1, step));
}

}  // namespace strata::engine
