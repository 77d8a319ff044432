// Every key that a configuration may have: DeepSpeed's, and Strata's own under "strata".
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/config/option.h"
#include "strata/config.h"

namespace strata {

enum class OffloadDevice : uint8_t { none, cpu, nvme };

// What a text asks for, before keys are checked against each other. Default values are the
// documented defaults.
struct ConfigDraft {
  Config config;  // fields that need no second look land here directly

  std::optional<int64_t> train_batch, micro_batch, accumulation_steps;
  bool bf16 = false, bfloat16 = false, fp16 = false;

  std::optional<OptimizerKind> optimizer_type;
  bool optimizer_given = false;
  bool lr_given = false, betas_given = false, eps_given = false, momentum_given = false;
  bool adam_w_mode = true;

  bool scheduler_given = false;
  std::optional<ScheduleKind> schedule_type;
  std::vector<std::string> schedule_keys;  // of scheduler.params, as given
  bool auto_max_lr = false;                // "warmup_max_lr": "auto"

  // By "stage3_..." name and short name.
  std::array<std::optional<int64_t>, 2> max_live, prefetch, persistence;
  static constexpr int64_t kPersistence = 100'000;

  int64_t sub_group_size = int64_t{8} << 20;
  OffloadDevice offload_optimizer = OffloadDevice::none;
  OffloadDevice offload_param = OffloadDevice::none;
  double ratio = 1.0;
  std::vector<std::string> nvme_paths;        // offload_optimizer's
  std::vector<std::string> param_nvme_paths;  // offload_param's
  bool cpu_checkpointing = false;

  // strata.placement, by StateKind: param, gradients, the optimizer kinds, activations.
  static constexpr size_t kPlaced = static_cast<size_t>(StateKind::activation) + 1;
  std::array<bool, kPlaced> placement_given = {};
  std::array<TierFractions, kPlaced> placement_fractions;

  PinChoice pin_state = PinChoice::automatic;
  std::optional<int64_t> slots;

  std::optional<int64_t> io_threads, intra_op_parallelism;
};

// The table, filling `draft`, which must outlive it.
options::Table config_table(ConfigDraft& draft);

// Its parts: keys that matter to training (among them the schedule's), to ZeRO and tiers, and keys
// for what is elsewhere.
options::Table training_groups(ConfigDraft& draft);
options::Group schedule_group(ConfigDraft& draft);
options::Table tier_groups(ConfigDraft& draft);
options::Table remaining_groups(ConfigDraft& draft);

// Fills Config::schedule and checks that its keys belong together; the optimizer is resolved.
// Returns what is wrong in a sentence, or an empty string.
std::string resolve_schedule(ConfigDraft& draft);

}  // namespace strata
