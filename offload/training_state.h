// The one object that knows where each grain of a rank's trainable state lives.
//
// Parameters (this rank's shards), gradients, master weights and moments are arrays over one index
// range of grains, each with a placement of its own. What lives on the device or in pinned host
// memory has an address; what lives on nvme has a place in the slot store.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/device/device.h"
#include "offload/placement.h"
#include "offload/pump.h"
#include "offload/slot_store.h"
#include "offload/tier_manager.h"
#include "strata/codec.h"
#include "strata/dtype.h"

namespace strata::offload {

struct TrainingStateSpec {
  Placement param;
  Placement grad;  // where the update of the grain runs: device or host
  std::array<Placement, kOptimizerKindCount> optimizer_state;
  // In kOptimizerKinds' order; none where the optimizer keeps no such kind.
  std::array<Codec, kOptimizerKindCount> codecs = {Codec::fp32, Codec::fp32, Codec::fp32};
  DType param_dtype = DType::bf16;
  DType grad_dtype = DType::fp32;
  std::vector<SubGroup> sub_groups;
  int slots = 1;

  const Placement& placement(StateKind kind) const;
  Codec codec(StateKind optimizer_kind) const;
  int64_t grain_bytes(StateKind kind) const;
  bool uses_nvme() const;

  // A slot holds the kinds of its sub-group that are on nvme, in kOptimizerKinds' order, each from
  // a disk block on.
  uint64_t extent_bytes(const SubGroup& group) const;
  bool on_disk(const SubGroup& group) const { return extent_bytes(group) > 0; }
  // Whether the sub-group's update reads parameters that lie elsewhere.
  bool loads_param(const SubGroup& group) const;
  SlotLayout slot_layout() const;
  // A kind's grains as they lie there, with what fills up the last disk block.
  uint64_t padded_bytes(StateKind kind, int64_t grains) const;
};

// What is read or written of a sub-group at a time starts at a multiple of this many of its grains,
// and ends at one or with the sub-group: so it is whole disk blocks in every codec.
inline constexpr int64_t kTransferAlignGrains = 64;

// Bytes that the update of one sub-group moves: its nvme kinds to the update and back, and its
// parameters to the device; those that the update reads from there before, too.
LinkBytes update_traffic(const TrainingStateSpec& spec, const SubGroup& group);
// Bytes that restoring its parameters from master weights on nvme moves.
LinkBytes restoration_traffic(const TrainingStateSpec& spec, const SubGroup& group);

// The reservations that TrainingState claims: "<kind> on device", "<kind> on host", "state file".
std::vector<Reservation> reservations_for(const TrainingStateSpec& spec);

class TrainingState {
 public:
  // `store` and `pump` are null when nothing lives on nvme. `transfer` is a device queue for
  // read() and write(). All must outlive this object.
  TrainingState(TrainingStateSpec spec, TierManager& tiers, SlotStore* store, Pump* pump,
                Queue& transfer);

  const TrainingStateSpec& spec() const { return spec_; }
  SlotStore* store() const { return store_; }

  // Address of a grain's first element; null where it lives on nvme. The address holds for the
  // rest of the grain's run in that tier.
  std::byte* resident(StateKind kind, int64_t grain) const;

  // Copies grains of one sub-group, cut as kTransferAlignGrains says, between their tier and
  // `buffer`: pinned host memory aligned to 4096 bytes, with room for padded_bytes(), laid out as
  // stored. Blocks. Not for use while a step is under way: these are the verbs of initialization,
  // digests and checkpoints. write() fills every slot. Throws IoError.
  void read(StateKind kind, GrainRange grains, std::byte* buffer);
  void write(StateKind kind, GrainRange grains, const std::byte* buffer);

 private:
  struct Array {
    Arena device;
    Arena host;
  };
  // The sub-group of a transfer. Throws Error when it is not cut as it must be.
  const SubGroup& sub_group_of(GrainRange grains) const;
  // Between memory; `on_device` is the direction where the grains lie on the device.
  void copy(StateKind kind, GrainRange grains, std::byte* to, const std::byte* from,
            CopyDirection on_device) const;
  IoCommand nvme_command(io::Op op, StateKind kind, GrainRange grains, Extent extent,
                         std::byte* data) const;

  const TrainingStateSpec spec_;
  SlotStore* const store_;
  Pump* const pump_;
  Queue& transfer_;
  std::array<Array, kStateKindCount> arrays_;
};

}  // namespace strata::offload
