#include "engine/plan/check.h"

#include <fmt/format.h>

#include <cmath>
#include <string_view>

#include "strata/error.h"

namespace strata::engine {
namespace {

constexpr int64_t kMaxAccumulationSteps = 1 << 16;  // a step's program is unrolled over them

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
  if (input.model.layers.empty()) throw ConfigError("the model has no layers: give it one");
  if (config.accumulation_steps < 1 || config.accumulation_steps > kMaxAccumulationSteps) {
    throw ConfigError(fmt::format("gradient_accumulation_steps is {}: use 1 to {}",
                                  config.accumulation_steps, kMaxAccumulationSteps));
  }
  if (config.sub_group_numel < kGrainNumel || config.sub_group_numel % kGrainNumel != 0) {
    throw ConfigError(fmt::format("sub_group_numel is {}: use a positive multiple of {}",
                                  config.sub_group_numel, kGrainNumel));
  }
  if (config.staging_buffers < 1 || config.slots < 1 || config.slots > 2) {
    throw ConfigError("staging_buffers must be at least 1, and slots 1 or 2");
  }
  if (config.dtype != DType::fp32 && config.dtype != DType::bf16) {
    throw ConfigError(
        fmt::format("{} is not there yet: train in bf16 or fp32", name(config.dtype)));
  }
  if (config.master_codec == Codec::split16 && config.dtype != DType::bf16) {
    throw ConfigError(
        fmt::format("split16 masters need bf16 parameters, and these are {}", name(config.dtype)));
  }
  check_fractions("param", config.param);
  if (config.param.nvme > 0) {
    throw ConfigError("parameters on nvme are not there yet: place them on device and host");
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
  if (shape.sequence > input.model.max_sequence) {
    throw ConfigError(
        fmt::format("a row of {} tokens is longer than the model's {} positions: shorten the "
                    "rows or raise n_positions",
                    shape.sequence, input.model.max_sequence));
  }
}

}  // namespace

void check(const PlanInput& input) {
  check_config(input);
  check_shape(input);
}

}  // namespace strata::engine
