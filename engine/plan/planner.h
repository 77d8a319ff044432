// Turns configuration, model and world into the plan that the run consumes.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "engine/runtime/program.h"
#include "engine/zero/unit_layout.h"
#include "offload/optimizer_pipeline.h"
#include "offload/training_state.h"
#include "strata/config.h"
#include "strata/layer_ops.h"
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

// How fast things are, a second, as far as the choice between two plans needs it: a host with one
// disk, of which DDR and PCIe are an order of magnitude away.
struct MachineSpeeds {
  double operations = 1e11;    // of matrix products
  double nvme_bytes = 2e9;     // read and written
  double device_bytes = 1e10;  // either way
  double comm_bytes = 5e9;     // sent to other ranks
};

// Where activations lie in their reservations; offsets in bytes.
struct ActivationLayout {
  struct PerUnit {
    LayerFootprint footprint;
    int64_t output_channels = 0;
    uint64_t output_bytes = 0;  // of one micro-batch, in whole pages
    uint64_t saved_offset = 0;  // in "saved activations": of the first micro-batch kept there,
    uint64_t saved_stride = 0;  // and from one to the next
    bool keeps_saved = false;   // until its backward; otherwise recomputed into the shared place
    // Where its output waits for backward; on host and nvme from this offset on, as above.
    Tier checkpoint_tier = Tier::device;
    uint64_t stored_offset = 0;
    uint64_t stored_stride = 0;
  };
  std::vector<PerUnit> units;
  std::vector<uint64_t> place_offset;  // in "boundary activations", by place
  uint64_t boundary_bytes = 0;
  std::array<uint64_t, kTierCount> stored_bytes = {};  // of outputs on host and nvme
  uint64_t output_grad_bytes = 0;                      // of one place
  uint64_t saved_bytes = 0;
  uint64_t workspace_bytes = 0;
};

struct Plan {
  explicit Plan(ModelLayout laid_out) : layout(std::move(laid_out)) {}

  PlanSummary summary;
  BatchShape micro_batch;
  ModelLayout layout;
  std::vector<Segment> segments;
  offload::TrainingStateSpec state;
  offload::StagingLayout staging;
  ActivationLayout activations;
  int micro_batches = 1;
  uint64_t batch_bytes = 0;  // of a micro-batch's tokens, targets and features (BatchViews)
  UnitOrder order = UnitOrder::plain;
  GradientSums sums = GradientSums::none;
  std::vector<ParameterAccess> access;  // by unit, in a step
  Program step;
  Program evaluate;
  LinkBytes update_traffic = {};      // the part of a step's that a skipped one does not move
  uint64_t reduced_bytes = 0;         // one of two buffers for a unit's gradients summed over ranks
  uint64_t reduce_scratch_bytes = 0;  // what peers send of them at a time
  uint64_t landing_bytes = 0;         // one of two buffers for gradients on their way to the host
  int64_t transfer_grains = 0;        // of state that initialization, digests, checkpoints move
  std::vector<int32_t> order_of_use;  // of sub-groups (engine/plan/sub_group_order.h)
  std::vector<int32_t> order_of_completion;

  // Of a buffer for them: as they are kept, and as fp32.
  uint64_t transfer_bytes() const {
    return static_cast<uint64_t>(2 * transfer_grains * kGrainNumel) * sizeof(float);
  }
  // Whether anything lives on nvme.
  bool uses_nvme() const { return summary.needed_bytes[static_cast<size_t>(Tier::nvme)] > 0; }
  // Whether each step's state becomes durable before the next one starts.
  bool commits() const { return state.uses_nvme() && state.slots > 1; }
  // Whether that state outlives the process, and is all that it takes to go on from there.
  bool recovers_steps = false;

  // Of the gradients that land: sums are fp32, a single rank's and micro-batch's are as computed.
  DType landed_dtype() const {
    return layout.world_size() > 1 || sums != GradientSums::none ? DType::fp32 : state.param_dtype;
  }
  // Whether a reduction of this micro-batch goes over the ranks; and whether what it adds up lands.
  bool reduces(int micro_batch) const {
    return sums != GradientSums::whole || is_last(micro_batch);
  }
  bool lands(int micro_batch) const { return sums == GradientSums::none || is_last(micro_batch); }
  bool adds_at_landing(int micro_batch) const {
    return sums == GradientSums::none && micro_batch > 0;
  }
  bool is_last(int micro_batch) const { return micro_batch == micro_batches - 1; }
  // Of what ranks send of gradients.
  DType reduced_dtype() const {
    return sums == GradientSums::whole ? DType::fp32 : state.param_dtype;
  }
};

// Doubles that ranks exchange in a step: the loss, the sum of squares, whether to stop, and whether
// a checkpoint under way is copied; and when a generation is durable everywhere.
inline constexpr uint64_t kStepDoubles = 4;
inline constexpr uint64_t kCommitDoubles = 1;

// Names of the reservations that the runtime claims itself; the rest belong to offload.
namespace reserved {
inline constexpr const char* kWindow = "gather window";
inline constexpr const char* kLocalGrads = "local gradients";
inline constexpr const char* kGradSums = "gradient sums";
inline constexpr const char* kReducedGrads = "reduced gradients";
inline constexpr const char* kReduceScratch = "reduce scratch";
inline constexpr const char* kBatches = "batches";
inline constexpr const char* kBatchStaging = "batch staging";
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
inline constexpr const char* kCheckpointTransfer = "checkpoint transfer buffer";
inline constexpr const char* kJournalRecord = "journal record";
inline constexpr const char* kStateFile = "state file";
inline constexpr const char* kJournalFile = "journal file";
inline constexpr const char* kParameterRing = "parameter staging";
inline constexpr const char* kGradientRing = "gradient staging";
inline constexpr const char* kActivationRing = "activation staging";
inline constexpr const char* kHostActivations = "activations on host";
inline constexpr const char* kActivationFile = "activation file";
}  // namespace reserved

struct PlanInput {
  const Model& model;
  const Config& config;
  const World& world;
  BatchShape micro_batch;
  const ops::LayerOps& ops;  // sizes saved and workspace bytes
  MachineMemory machine;
  MachineSpeeds speeds = {};
  int held_units = 0;  // the caller computes, and holds so many gathered units at a time; 0: layers
  bool has_run_directory = false;  // something of the run is to outlive its process
};

// Throws ConfigError for what cannot be planned, and OutOfBudget where a tier's budget is too
// small: needed, available, and which settings would free how much.
Plan make_plan(const PlanInput& input);

}  // namespace strata::engine
