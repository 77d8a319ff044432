#include "engine/plan/check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include "strata/error.h"

namespace strata::engine {
namespace {

constexpr int64_t kMaxAccumulationSteps = 1 << 16;  // a step's program is unrolled over them
constexpr double kMaxLossScale = 1e38;              // layers take it as a float

void check_fractions(std::string_view kind, const TierFractions& fractions) {
  const double sum = fractions.device + fractions.host + fractions.nvme;
  const bool valid = fractions.device >= 0 && fractions.host >= 0 && fractions.nvme >= 0 &&
                     std::abs(sum - 1.0) < 1e-6;
  if (!valid) {
    throw ConfigError(
        fmt::format("the fractions of {} in device, host and nvme must add up to 1; "
                    "they are {}, {} and {}",
                    kind, fractions.device, fractions.host, fractions.nvme));
  }
}

void check_loss_scale(const LossScaleConfig& scale) {
  const bool valid = scale.constant >= 0 && scale.constant <= kMaxLossScale &&
                     scale.initial_power >= 0 &&
                     std::ldexp(1.0, scale.initial_power) <= kMaxLossScale && scale.window >= 1 &&
                     scale.hysteresis >= 1 && scale.min_scale >= 1;
  if (!valid) {
    throw ConfigError(
        "loss_scale: a constant is at most 1e38 and 0 for none, the initial power is 0 to 126, and "
        "window, hysteresis and min_scale are 1 or more");
  }
}

void check_speculation_settings(const Config& config) {
  if (config.speculate != SpeculateChoice::always) return;
  if (config.slots == 1 || !config.overlap) {
    throw ConfigError("speculating takes two slots and overlap: set both, or leave it");
  }
  if (config.master_codec != Codec::fp32) {
    throw ConfigError(
        "speculating takes fp32 masters, from which parameters can be restored: set the master's "
        "codec to fp32, or leave speculation");
  }
}

bool any_can_speculate(const offload::TrainingStateSpec& state) {
  return std::any_of(
      state.sub_groups.begin(), state.sub_groups.end(),
      [&](const offload::SubGroup& group) { return offload::can_speculate(state, group); });
}

void check_config(const PlanInput& input) {
  const Config& config = input.config;
  if (input.world.rank < 0 || input.world.rank >= input.world.size) {
    throw ConfigError(fmt::format("rank {} is not in a world of {}: ranks count from 0",
                                  input.world.rank, input.world.size));
  }
  if (config.world_size != input.world.size) {
    throw ConfigError(
        fmt::format("the configuration divides its batch among {} ranks and there are {}: give "
                    "Config::from_file the world's size",
                    config.world_size, input.world.size));
  }
  if (config.stage < 0 || config.stage > 3) {
    throw ConfigError(fmt::format("the stage is {}: use 0, 1, 2 or 3", config.stage));
  }
  if (config.stage < 3 && config.param.device != 1) {
    throw ConfigError(
        fmt::format("stage {} keeps all parameters on the device: place them there, or use stage 3",
                    config.stage));
  }
  if (input.model.layers.empty()) throw ConfigError("the model has no layers: give it one");
  if (config.accumulation_steps < 1 || config.accumulation_steps > kMaxAccumulationSteps) {
    throw ConfigError(fmt::format("gradient_accumulation_steps is {}: use 1 to {}",
                                  config.accumulation_steps, kMaxAccumulationSteps));
  }
  if (config.tiles < 1 || config.tiles > Config::kMostTiles) {
    throw ConfigError(fmt::format("tiles is {}: use 1 to {}", config.tiles, Config::kMostTiles));
  }
  if (config.sub_group_numel < kGrainNumel || config.sub_group_numel % kGrainNumel != 0) {
    throw ConfigError(fmt::format("sub_group_numel is {}: use a positive multiple of {}",
                                  config.sub_group_numel, kGrainNumel));
  }
  if (config.staging_buffers < 0 || config.slots < 1 || config.slots > 2) {
    throw ConfigError("staging_buffers must be at least 1, or 0 for auto, and slots 1 or 2");
  }
  if (config.snapshot_slots < 0 || config.snapshot_slots > 1) {
    throw ConfigError(fmt::format("snapshot_slots is {}: use 0 or 1", config.snapshot_slots));
  }
  if (config.snapshot_slots > 0 && config.slots == 1) {
    throw ConfigError(
        "a slot is to be copied while steps go on in two others (strata.snapshot_slots), and there "
        "is one: set strata.slots to 2");
  }
  if (!(config.checkpoint_share > 0 && config.checkpoint_share <= 1)) {
    throw ConfigError(fmt::format("checkpoint_share is {}: use a number above 0 and at most 1",
                                  config.checkpoint_share));
  }
  if (!(config.watchdog_s >= 0 && std::isfinite(config.watchdog_s))) {
    throw ConfigError(
        fmt::format("watchdog is {}: use seconds, 0 for no watchdog", config.watchdog_s));
  }
  check_speculation_settings(config);
  if (config.pin_state == PinChoice::always && config.host_memory == 0) {
    throw ConfigError("state is to be pinned without a budget to fill: set host_memory");
  }
  if (config.dtype == DType::int32) {
    throw ConfigError("int32 is for tokens: train in fp32, bf16 or fp16");
  }
  if (config.master_codec == Codec::split16 && config.dtype != DType::bf16) {
    throw ConfigError(
        fmt::format("split16 masters need bf16 parameters, and these are {}", name(config.dtype)));
  }
  check_loss_scale(config.loss_scale);
  check_fractions("param", config.param);
  check_fractions("grad", config.grad);
  check_fractions("activation", config.activation);
  if (config.grad.device > 0) {
    throw ConfigError(
        "gradients are on the device where it updates, and nowhere else: divide those of the host "
        "between host and nvme");
  }
  const bool on_nvme = config.param.nvme > 0 || config.grad.nvme > 0 || config.activation.nvme > 0;
  if (on_nvme && config.nvme_paths.empty()) {
    throw ConfigError(
        "parameters, gradients or activations are placed on nvme without a directory: set "
        "nvme_path");
  }
  for (size_t i = 0; i < kOptimizerKindCount; ++i) {
    const TierFractions& fractions = config.optimizer_state[i];
    check_fractions(name(kOptimizerKinds[i]), fractions);
    if (fractions.device != config.optimizer_state[0].device) {
      throw ConfigError(
          "master, exp_avg and exp_avg_sq must have one device fraction: an update "
          "runs where all three are");
    }
    if (fractions.nvme > 0 && config.nvme_paths.empty()) {
      throw ConfigError(fmt::format("{} is placed on nvme without a directory: set nvme_path",
                                    name(kOptimizerKinds[i])));
    }
  }
}

void check_shape(const PlanInput& input) {
  const BatchShape& shape = input.micro_batch;
  if (shape.batch <= 0 || shape.sequence <= 0) {
    throw ConfigError("a micro-batch needs at least one row and one token a row");
  }
  if (input.model.max_sequence > 0 && shape.sequence > input.model.max_sequence) {
    throw ConfigError(
        fmt::format("a row of {} tokens is longer than the model's {} positions: shorten the "
                    "rows or raise n_positions",
                    shape.sequence, input.model.max_sequence));
  }
}

void check_model_inputs(const Model& model) {
  if (model.vocab_size < 0 || model.features < 0 || model.classes < 0) {
    throw ConfigError("a model's vocab_size, features and classes are 0 or more");
  }
  if (model.vocab_size == 0 && model.features == 0) {
    throw ConfigError("the model takes neither tokens nor features: set vocab_size or features");
  }
}

void check_tiles(const Model& model) {
  for (size_t i = 0; i < model.layers.size(); ++i) {
    const Layer& layer = *model.layers[i];
    if (!layer.is_further_tile()) continue;
    if (i == 0) {
      throw ConfigError(
          fmt::format("layer '{}' is a further tile, and the model's first: add a layer before it",
                      layer.name()));
    }
    const int64_t before = model.layers[i - 1]->output_channels();
    if (layer.output_channels() == before) continue;
    throw ConfigError(fmt::format(
        "layer '{}' is a further tile of '{}' and has {} output channels instead of {}: tiles add "
        "up to one output",
        layer.name(), model.layers[i - 1]->name(), layer.output_channels(), before));
  }
}

// What the caller's own compute cannot have.
void check_own_compute(const PlanInput& input) {
  if (input.config.order == OrderChoice::vertical) {
    throw ConfigError(
        "the caller computes, one micro-batch after the other: \"vertical\" order is train_step's");
  }
  for (const auto& layer : input.model.layers) {
    if (layer->shared_parameters().empty()) continue;
    throw ConfigError(fmt::format(
        "the caller computes, and layer '{}' shares another one's parameters: hold both "
        "units instead",
        layer->name()));
  }
}

}  // namespace

void check(const PlanInput& input) {
  check_config(input);
  if (input.held_units > 0) {
    check_own_compute(input);
  } else {
    check_shape(input);
    check_model_inputs(input.model);
    check_tiles(input.model);
  }
}

void check_pinning(const Config& config, const offload::TrainingStateSpec& placed) {
  if (config.pin_state != PinChoice::always || placed.uses_nvme()) return;
  throw ConfigError(
      "strata.pin_state is \"always\", and no grain of optimizer state is placed on nvme to be "
      "pinned: set "
      "zero_optimization.offload_optimizer.device to \"nvme\", or strata.pin_state to \"auto\"");
}

void check_speculation(const Config& config, const offload::TrainingStateSpec& placed,
                       const offload::TrainingStateSpec& pinned) {
  if (config.speculate != SpeculateChoice::always || any_can_speculate(pinned)) return;
  if (any_can_speculate(placed)) {
    throw ConfigError(
        "strata.speculate is \"always\", and pinning in host memory leaves no sub-group's whole "
        "state on nvme: set strata.pin_state to \"never\", or strata.speculate to \"auto\"");
  }
  throw ConfigError(
      "strata.speculate is \"always\", and no sub-group has all of its optimizer state on nvme: "
      "set "
      "zero_optimization.offload_optimizer.device to \"nvme\", or strata.speculate to \"auto\"");
}

std::string step_recovery_takes(const PlanInput& input, const offload::TrainingStateSpec& placed) {
  const Config& config = input.config;
  std::string change;
  const auto on_nvme = [&](const offload::SubGroup& group) {
    for (size_t i = 0; i < kOptimizerKindCount; ++i) {
      if (placed.codecs[i] != Codec::none && group.state_tier[i] != Tier::nvme) return false;
    }
    return true;
  };
  if (!std::all_of(placed.sub_groups.begin(), placed.sub_groups.end(), on_nvme)) {
    change =
        "all of the optimizer's state on nvme (zero_optimization.offload_optimizer.device "
        "\"nvme\", strata.pin_state \"never\")";
  } else if (config.master_codec != Codec::fp32) {
    change = "strata.master_codec \"fp32\"";
  } else if (config.slots < 2) {
    change = "strata.slots 2, and so twice its space on disk";
  }
  if (config.recovery != RecoveryChoice::step) return change;
  if (!change.empty()) {
    throw ConfigError(fmt::format("strata.recovery is \"step\", which takes {}", change));
  }
  if (!input.has_run_directory) {
    throw ConfigError(
        "strata.recovery is \"step\" and the run has no directory to be found by: give it one "
        "(--output), or leave recovery out");
  }
  return change;
}

}  // namespace strata::engine
