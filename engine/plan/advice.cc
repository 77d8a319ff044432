#include "engine/plan/advice.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

namespace strata::engine {
namespace {

struct Change {
  std::string setting;
  Config config;
  BatchShape micro_batch;
  Model model;
};

TierFractions all_in(Tier tier) {
  return {tier == Tier::device ? 1.0 : 0.0, tier == Tier::host ? 1.0 : 0.0,
          tier == Tier::nvme ? 1.0 : 0.0};
}

// Changes that a person could make, each on its own.
std::vector<Change> possible_changes(const PlanInput& input) {
  std::vector<Change> changes;
  const auto add = [&](std::string setting, auto&& edit) {
    Change change{std::move(setting), input.config, input.micro_batch, input.model};
    edit(change);
    changes.push_back(std::move(change));
  };
  const auto optimizer_in = [](Tier tier) {
    return [tier](Change& change) { change.config.optimizer_state.fill(all_in(tier)); };
  };
  add("zero_optimization.offload_optimizer.device = \"cpu\"", optimizer_in(Tier::host));
  if (!input.config.nvme_paths.empty()) {
    add("zero_optimization.offload_optimizer.device = \"nvme\"", optimizer_in(Tier::nvme));
  }
  add("zero_optimization.offload_param.device = \"cpu\"",
      [](Change& change) { change.config.param = all_in(Tier::host); });
  add("zero_optimization.offload_param.device = \"none\"",
      [](Change& change) { change.config.param = all_in(Tier::device); });
  add("strata.recompute = \"always\"",
      [](Change& change) { change.config.recompute = RecomputeChoice::always; });
  add("strata.overlap = false", [](Change& change) { change.config.overlap = false; });
  if (input.config.order != OrderChoice::plain && input.config.accumulation_steps > 1) {
    add("strata.order = \"plain\"",
        [](Change& change) { change.config.order = OrderChoice::plain; });
  }
  if (input.config.activation.device > 0) {
    add("activation_checkpointing.cpu_checkpointing = true",
        [](Change& change) { change.config.activation = all_in(Tier::host); });
  }
  if (input.config.stage < 3) {
    add("zero_optimization.stage = 3", [](Change& change) { change.config.stage = 3; });
  }
  // Twice as many need not help: the window then holds three halves of the widest layer.
  const int64_t more_tiles = 4 * input.config.tiles;
  if (input.model.tiled && more_tiles <= Config::kMostTiles) {
    add(fmt::format("strata.tiles = {}", more_tiles), [more_tiles](Change& change) {
      change.config.tiles = more_tiles;
      change.model = change.model.tiled(more_tiles);
    });
  }
  if (input.config.snapshot_slots > 0) {
    add("strata.snapshot_slots = 0", [](Change& change) { change.config.snapshot_slots = 0; });
  } else if (input.config.slots > 1) {
    add("strata.slots = 1", [](Change& change) { change.config.slots = 1; });
  }
  if (input.micro_batch.batch > 1) {
    const int64_t half = input.micro_batch.batch / 2;
    add(fmt::format("train_micro_batch_size_per_gpu = {}", half),
        [half](Change& change) { change.micro_batch.batch = half; });
  }
  if (input.world.size > 1) {
    const int64_t least = kGrainNumel * input.world.size;
    add(fmt::format("zero_optimization.reduce_bucket_size = {}", least),
        [least](Change& change) { change.config.reduce_bucket_numel = least; });
  }
  if (input.config.sub_group_numel > kGrainNumel) {
    const int64_t half =
        std::max(kGrainNumel, input.config.sub_group_numel / 2 / kGrainNumel * kGrainNumel);
    add(fmt::format("zero_optimization.sub_group_size = {}", half),
        [half](Change& change) { change.config.sub_group_numel = half; });
  }
  return changes;
}

// As a configuration takes it.
std::string mebibytes_up(uint64_t bytes) {
  return fmt::format("\"{}MiB\"", (bytes + (uint64_t{1} << 20) - 1) >> 20);
}

// The budget that a person set, or where the tier's end is the machine's.
std::string budget_source(const Config& config, Tier tier) {
  switch (tier) {
    case Tier::device:
      return config.device_memory != 0 ? "strata.device_memory" : "the device";
    case Tier::host:
      return config.host_memory != 0 ? "strata.host_memory" : "this machine's free memory";
    case Tier::nvme:
      return fmt::format("{} of '{}'", config.nvme_paths.size() == 1 ? "the disk" : "the disks",
                         fmt::join(config.nvme_paths, "' and '"));
  }
  return {};
}

}  // namespace

OutOfBudget out_of_budget(const PlanInput& input, const PlanSummary& plan, Tier tier) {
  const auto i = static_cast<size_t>(tier);
  const uint64_t needed = plan.needed_bytes[i];
  const uint64_t available = plan.budget_bytes[i];

  std::vector<std::pair<uint64_t, std::string>> freeing;
  for (const Change& change : possible_changes(input)) {
    // Room that a change makes would be filled with activations that are kept: left out here, so
    // that what it frees shows.
    Config config = change.config;
    config.recompute = RecomputeChoice::always;
    const PlanInput changed{change.model, config,        input.world,  change.micro_batch,
                            input.ops,    input.machine, input.speeds, input.held_units};
    try {
      const uint64_t then = make_plan_unchecked(changed).summary.needed_bytes[i];
      if (then < needed) freeing.emplace_back(needed - then, change.setting);
    } catch (const ConfigError&) {
      continue;  // not a change that this run could make
    }
  }
  std::sort(freeing.rbegin(), freeing.rend());
  if (freeing.size() > 3) freeing.resize(3);

  std::string message =
      fmt::format("the {} tier needs {} bytes, {} more than the {} of {}", name(tier), needed,
                  needed - available, available, budget_source(input.config, tier));
  for (size_t k = 0; k < freeing.size(); ++k) {
    message +=
        fmt::format("{} {} would free {}", k == 0 ? ":" : ";", freeing[k].second, freeing[k].first);
  }
  message += freeing.empty() ? ": " : "; or ";
  message += fmt::format("give it {}", mebibytes_up(needed));
  return OutOfBudget(message, tier, needed, available);
}

}  // namespace strata::engine
