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
#include "strata/dtype.h"

namespace strata::offload {

struct TrainingStateSpec {
  Placement param;
  Placement grad;  // where the update of the grain runs: device or host
  std::array<Placement, kOptimizerKindCount> optimizer_state;
  DType param_dtype = DType::bf16;
  DType grad_dtype = DType::fp32;
  std::vector<SubGroup> sub_groups;
  int slots = 1;

  const Placement& placement(StateKind kind) const;
  int64_t grain_bytes(StateKind kind) const;
  bool uses_nvme() const;
};

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

  // Copies grains between their tiers and `buffer`, pinned host memory aligned to 4096 bytes, laid
  // out grain after grain. Blocks. Not for use while a step is under way: these are the verbs of
  // initialization, digests and checkpoints. write() fills every slot. Throws IoError.
  void read(StateKind kind, GrainRange grains, std::byte* buffer);
  void write(StateKind kind, GrainRange grains, const std::byte* buffer);

 private:
  struct Array {
    Arena device;
    Arena host;
  };
  template <typename Visit>
  void for_each_run(StateKind kind, GrainRange grains, const Visit& visit);
  IoCommand nvme_command(StateKind kind, GrainRange run, const SubGroup& group, Extent extent,
                         std::byte* data) const;

  const TrainingStateSpec spec_;
  SlotStore* const store_;
  Pump* const pump_;
  Queue& transfer_;
  std::array<Array, kStateKindCount> arrays_;
};

}  // namespace strata::offload
