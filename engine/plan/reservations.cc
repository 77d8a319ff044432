#include "engine/plan/reservations.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "engine/plan/traffic.h"
#include "offload/slot_store.h"

namespace strata::engine {
namespace {

using PerUnit = ActivationLayout::PerUnit;

int64_t sum(const std::vector<int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), int64_t{0});
}

class Reserver {
 public:
  Reserver(const PlanInput& input, const HostShare& host, Plan& plan)
      : input_(input), host_(host), plan_(plan), element_bytes_(size_bytes(input.config.dtype)) {}

  void reserve() {
    PlanSummary& summary = plan_.summary;
    const ActivationLayout& activations = plan_.activations;
    const auto micro_batches = static_cast<uint64_t>(input_.config.accumulation_steps);
    const uint64_t batch_bytes = micro_batches * plan_.batch_bytes;
    const auto device_grains = static_cast<uint64_t>(plan_.state.grad.range(Tier::device).grains());
    plan_.reduced_bytes = reduced_bytes();
    plan_.reduce_scratch_bytes = reduce_scratch_bytes();
    plan_.landing_bytes = landing_bytes();

    summary.reservations = offload::reservations_for(plan_.state);
    for (const Reservation& r : offload::reservations_for(plan_.staging)) {
      summary.reservations.push_back(r);
    }
    add(Tier::device, StateKind::param, reserved::kWindow,
        static_cast<uint64_t>(sum(plan_.step.window_numel)) * element_bytes_);
    add(Tier::device, StateKind::grad, reserved::kLocalGrads,
        static_cast<uint64_t>(sum(plan_.step.grad_slot_numel)) * element_bytes_);
    add(Tier::device, StateKind::grad, reserved::kGradSums,
        static_cast<uint64_t>(sum(plan_.step.sum_slot_numel)) * sizeof(float));
    add(Tier::device, StateKind::grad, reserved::kReducedGrads, 2 * plan_.reduced_bytes);
    add(Tier::device, StateKind::grad, reserved::kReduceScratch, plan_.reduce_scratch_bytes);
    add(Tier::device, StateKind::activation, reserved::kBoundary, activations.boundary_bytes);
    add(Tier::device, StateKind::activation, reserved::kOutputGrads,
        static_cast<uint64_t>(plan_.step.output_grads) * activations.output_grad_bytes);
    add(Tier::device, StateKind::activation, reserved::kSaved, activations.saved_bytes);
    add(Tier::device, StateKind::activation, reserved::kWorkspace, activations.workspace_bytes);
    add(Tier::device, StateKind::other, reserved::kBatches, batch_bytes);
    add(Tier::device, StateKind::other, reserved::kLoss, micro_batches * sizeof(double));
    add(Tier::device, StateKind::other, reserved::kDeviceGrainSums, device_grains * sizeof(double));
    add(Tier::host, StateKind::other, reserved::kBatchStaging, batch_bytes);
    add(Tier::host, StateKind::other, reserved::kLossReadback, micro_batches * sizeof(double));
    add(Tier::host, StateKind::other, reserved::kScoresReadback,
        static_cast<uint64_t>(input_.model.target_classes()) * element_bytes_);
    add(Tier::host, StateKind::grad, reserved::kLanding, 2 * plan_.landing_bytes);
    add(Tier::host, StateKind::other, reserved::kGrainSums,
        static_cast<uint64_t>(plan_.layout.trainable_grains()) * sizeof(double));
    add(Tier::host, StateKind::other, reserved::kTransfer, plan_.transfer_bytes());
    if (copies_beside_steps()) {
      add(Tier::host, StateKind::other, reserved::kCheckpointTransfer, plan_.transfer_bytes());
    }
    add(Tier::host, StateKind::other, reserved::kParameterRing, parameter_ring_bytes());
    add(Tier::host, StateKind::other, reserved::kGradientRing, gradient_ring_bytes());
    reserve_checkpoints();
    if (plan_.commits()) {
      const uint64_t journal = offload::SlotStore::journal_bytes(plan_.state.slot_layout());
      add(Tier::host, StateKind::other, reserved::kJournalRecord, journal / 2);
      add(Tier::nvme, StateKind::other, reserved::kJournalFile, journal);
    }
    summary.needed_bytes = {};
    for (const Reservation& r : summary.reservations) {
      summary.needed_bytes[static_cast<size_t>(r.tier)] += r.bytes;
    }
  }

 private:
  // Checkpoints from pinned slots. Asked before it is known whether each step will be recoverable.
  bool copies_beside_steps() const {
    return plan_.commits() && input_.has_run_directory &&
           input_.config.recovery != RecoveryChoice::checkpoint;
  }
  const std::vector<Unit>& units() const { return plan_.layout.units(); }
  void add(Tier tier, StateKind kind, const char* name, uint64_t bytes) {
    if (bytes == 0) return;
    plan_.summary.reservations.push_back({tier, kind, name, bytes});
  }

  void reserve_checkpoints() {
    const ActivationLayout& activations = plan_.activations;
    const uint64_t on_nvme = activations.stored_bytes[static_cast<size_t>(Tier::nvme)];
    add(Tier::host, StateKind::activation, reserved::kHostActivations,
        activations.stored_bytes[static_cast<size_t>(Tier::host)]);
    add(Tier::nvme, StateKind::activation, reserved::kActivationFile, on_nvme);
    uint64_t largest = 0;
    for (const PerUnit& unit : activations.units) {
      if (unit.checkpoint_tier == Tier::nvme) largest = std::max(largest, unit.output_bytes);
    }
    add(Tier::host, StateKind::other, reserved::kActivationRing,
        std::min(on_nvme, transfers_ahead() * largest));
  }

  // Of those between nvme and the device that have room at a time: one that is used, one that is
  // there, one on its way; fewer where the host budget is short.
  uint64_t transfers_ahead() const {
    return input_.config.overlap ? static_cast<uint64_t>(host_.transfers_ahead) : 1;
  }

  // Shards of gathered units on their way from nvme.
  uint64_t parameter_ring_bytes() const {
    uint64_t largest = 0;
    uint64_t all = 0;
    for (const Unit& unit : units()) {
      if (unit.whole) continue;
      const uint64_t bytes = nvme_param_bytes(plan_, unit);
      largest = std::max(largest, bytes);
      all += bytes;
    }
    const auto ranks = static_cast<uint64_t>(plan_.layout.world_size());
    const uint64_t prefetch =
        static_cast<uint64_t>(prefetch_numel(input_)) * element_bytes_ / ranks;
    const uint64_t ahead = std::min((transfers_ahead() - 1) * largest, prefetch);
    return std::min(all, largest + whole_pages(ahead));
  }

  // Shards of gradients on their way to nvme.
  uint64_t gradient_ring_bytes() const {
    uint64_t largest = 0;
    for (const Unit& unit : units()) largest = std::max(largest, nvme_grad_bytes(plan_, unit));
    return transfers_ahead() * largest;
  }

  int64_t largest_shard_numel() const {
    int64_t largest = 0;
    for (const Unit& unit : units()) largest = std::max(largest, unit.trainable.shard_numel);
    return largest;
  }

  // Of what each rank adds up of a unit's gradient.
  int64_t largest_part_numel() const {
    return largest_shard_numel() * plan_.layout.state_shards() / input_.world.size;
  }

  // A unit's gradient summed over ranks, this rank's shard of it, in fp32; with stage 0 all shards.
  uint64_t reduced_bytes() const {
    if (input_.world.size == 1) return 0;
    return static_cast<uint64_t>(largest_shard_numel()) * sizeof(float);
  }

  int64_t reduce_bucket_numel() const {
    if (input_.config.reduce_bucket_numel != Config::kAutoReduceBucket) {
      return input_.config.reduce_bucket_numel;
    }
    const int64_t widest = widest_channels(input_.model);
    return widest * widest;
  }

  // What peers send of a unit's gradient at a time: a piece of a shard from each. Where the network
  // adds, its sum of a shard, which is yet to be widened.
  uint64_t reduce_scratch_bytes() const {
    const uint64_t element_bytes = size_bytes(plan_.reduced_dtype());
    if (input_.config.reduction == ReductionChoice::fast) {
      const bool widens = input_.world.size > 1 && plan_.reduced_dtype() != DType::fp32;
      return widens ? static_cast<uint64_t>(largest_part_numel()) * element_bytes : 0;
    }
    const int64_t piece = reduce_bucket_numel() / input_.world.size;
    const int64_t whole_grains = std::max<int64_t>(piece / kGrainNumel, 1) * kGrainNumel;
    return static_cast<uint64_t>((input_.world.size - 1) *
                                 std::min(whole_grains, largest_part_numel())) *
           element_bytes;
  }

  // The largest part of a unit's gradient that lands on the host.
  uint64_t landing_bytes() const {
    uint64_t largest = 0;
    for (const Unit& unit : units()) largest = std::max(largest, host_grad_bytes(plan_, unit));
    return largest;
  }

  const PlanInput& input_;
  const HostShare& host_;
  Plan& plan_;
  const uint64_t element_bytes_;
};

}  // namespace

int64_t widest_channels(const Model& model) {
  int64_t widest = 0;
  for (const auto& layer : model.layers) widest = std::max(widest, layer->output_channels());
  return widest;
}

int64_t prefetch_numel(const PlanInput& input) {
  const int64_t asked = input.config.prefetch_numel;
  const int64_t widest = widest_channels(input.model);
  return asked == Config::kAutoNumel ? widest * widest * 9 / 10 : asked;
}

void reserve(const PlanInput& input, const HostShare& host, Plan& plan) {
  Reserver(input, host, plan).reserve();
}

}  // namespace strata::engine
