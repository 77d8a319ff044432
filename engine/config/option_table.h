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

  bool scheduler_given = false, scheduler_typed = false;
  bool max_lr_from_optimizer = false;  // "warmup_max_lr": "auto"

  int64_t sub_group_size = int64_t{8} << 20;
  OffloadDevice offload_optimizer = OffloadDevice::none;
  OffloadDevice offload_param = OffloadDevice::none;
  double ratio = 1.0;
  std::vector<std::string> nvme_paths;

  // strata.placement: of param, then the optimizer kinds.
  std::array<bool, 1 + kOptimizerKindCount> placement_given = {};
  std::array<TierFractions, 1 + kOptimizerKindCount> placement_fractions;

  PinChoice pin_state = PinChoice::automatic;

  std::optional<int64_t> io_threads, intra_op_parallelism;
};

// The table, filling `draft`, which must outlive it.
options::Table config_table(ConfigDraft& draft);

// Its parts: keys that matter to training, to ZeRO and tiers, and keys for what is elsewhere.
options::Table training_groups(ConfigDraft& draft);
options::Table tier_groups(ConfigDraft& draft);
options::Table remaining_groups();

}  // namespace strata
