// Turns configuration, model and world into the plan that the run consumes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/runtime/program.h"
#include "engine/zero/unit_layout.h"
#include "kernels/ops/layer_ops.h"
#include "offload/optimizer_pipeline.h"
#include "offload/training_state.h"
#include "strata/config.h"
#include "strata/model.h"
#include "strata/plan.h"
#include "strata/world.h"

namespace strata::engine {

// Bytes free for this process, by tier; the upper end of a budget that the configuration leaves
// open.
struct MachineMemory {
  uint64_t device_bytes = 0;
  uint64_t host_bytes = 0;
  uint64_t disk_bytes = 0;
  uint64_t process_bytes = 0;  // resident now, before anything is claimed

  // Asks the system: MemAvailable (the host device shares it), and the file systems of the
  // configuration's nvme_paths, each divided by the ranks on this machine. Throws ConfigError for a
  // path that does not exist or cannot be written.
  static MachineMemory of_host(const Config& config, int ranks);
};

// Where activations lie in their reservations; offsets in bytes.
struct ActivationLayout {
  struct PerUnit {
    LayerFootprint footprint;
    int64_t output_channels = 0;
    uint64_t output_offset = 0;  // in "boundary activations"
    uint64_t saved_offset = 0;   // in "saved activations"
    bool keeps_saved = false;    // until its backward; otherwise recomputed into the shared place
  };
  std::vector<PerUnit> units;
  uint64_t boundary_bytes = 0;
  uint64_t output_grad_bytes = 0;  // one of two, taken in turn
  uint64_t saved_bytes = 0;
  uint64_t workspace_bytes = 0;
};

struct Plan {
  PlanSummary summary;
  BatchShape micro_batch;
  ModelLayout layout;
  std::vector<Segment> segments;
  offload::TrainingStateSpec state;
  Tier frozen_tier = Tier::device;
  offload::StagingLayout staging;
  ActivationLayout activations;
  Program step;
  Program evaluate;
  LinkBytes update_traffic = {};      // the part of a step's that a skipped one does not move
  uint64_t reduced_bytes = 0;         // one of two buffers for gradients summed over ranks
  uint64_t reduce_scratch_bytes = 0;  // what peers send of them at a time
  uint64_t landing_bytes = 0;         // one of two buffers for gradients on their way to the host
  int64_t transfer_grains = 0;        // room of the buffer behind initialization and digests
  std::vector<int32_t> order_of_use;  // of sub-groups (engine/plan/sub_group_order.h)
  std::vector<int32_t> order_of_completion;

  // Whether each step's state becomes durable before the next one starts.
  bool commits() const { return state.uses_nvme() && state.slots > 1; }

  // Of the gradients that land: summed over ranks they are fp32, a single rank's are as computed.
  DType landed_dtype() const { return layout.world_size() > 1 ? DType::fp32 : state.param_dtype; }
};

// Doubles that ranks exchange in a step: the loss, the sum of squares and whether to stop; and when
// a generation is durable everywhere.
inline constexpr uint64_t kStepDoubles = 3;
inline constexpr uint64_t kCommitDoubles = 1;

// Names of the reservations that the runtime claims itself; the rest belong to offload.
namespace reserved {
inline constexpr const char* kFrozen = "frozen parameters";
inline constexpr const char* kWindow = "gather window";
inline constexpr const char* kLocalGrads = "local gradients";
inline constexpr const char* kReducedGrads = "reduced gradients";
inline constexpr const char* kReduceScratch = "reduce scratch";
inline constexpr const char* kTokens = "tokens";
inline constexpr const char* kTokenStaging = "token staging";
inline constexpr const char* kBoundary = "boundary activations";
inline constexpr const char* kOutputGrads = "activation gradients";
inline constexpr const char* kSaved = "saved activations";
inline constexpr const char* kWorkspace = "layer workspace";
inline constexpr const char* kLoss = "loss";
inline constexpr const char* kLossReadback = "loss readback";
inline constexpr const char* kScoresReadback = "scores readback";
inline constexpr const char* kLanding = "gradient landing";
inline constexpr const char* kGrainSums = "gradient norms";
inline constexpr const char* kDeviceGrainSums = "gradient norms on device";
inline constexpr const char* kTransfer = "transfer buffer";
inline constexpr const char* kJournalRecord = "journal record";
inline constexpr const char* kStateFile = "state file";
inline constexpr const char* kJournalFile = "journal file";
}  // namespace reserved

struct PlanInput {
  const Model& model;
  const Config& config;
  const World& world;
  BatchShape micro_batch;
  const ops::LayerOps& ops;  // sizes saved and workspace bytes
  MachineMemory machine;
};

// Throws ConfigError for what cannot be planned, and OutOfBudget where a tier's budget is too
// small: needed, available, and which settings would free how much.
Plan make_plan(const PlanInput& input);

}  // namespace strata::engine
