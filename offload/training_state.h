// The one object that knows where each grain of a rank's trainable state lives.
//
// Parameters (this rank's shards), gradients, master weights and moments are arrays over one index
// range of grains, each with a placement of its own; frozen parameters over a range of their own.
// What lives on the device or in pinned host memory has an address; optimizer state on nvme has a
// place in the slot store, parameters and gradients there lie in a file of their own, in the order
// of their grains. Parameters of whole units lie among those of the other ranks, in one buffer.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/striped_file.h"
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
  Placement frozen;          // grains of their own
  uint64_t whole_bytes = 0;  // of the buffer of whole units
  Placement grad;            // where the update of the grain runs, device or host; or nvme
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
  // Where one of them starts there.
  uint64_t extent_offset(const SubGroup& group, StateKind kind) const;
  bool on_disk(const SubGroup& group) const { return extent_bytes(group) > 0; }
  // Whether the sub-group's update reads parameters that lie elsewhere.
  bool loads_param(const SubGroup& group) const;
  SlotLayout slot_layout() const;
  // A kind's grains as they lie there, with what fills up the last disk block.
  uint64_t padded_bytes(StateKind kind, int64_t grains) const;
};

// Transfers that start at a multiple of this many grains of their sub-group are whole disk blocks
// in every codec.
inline constexpr int64_t kTransferAlignGrains = 64;

// Bytes that the update of one sub-group moves: what lies on nvme to the update and back, and its
// parameters to where they live; those that the update reads from there before, too.
LinkBytes update_traffic(const TrainingStateSpec& spec, const SubGroup& group);
// The part of it that comes before the update.
LinkBytes read_traffic(const TrainingStateSpec& spec, const SubGroup& group);
// Bytes that restoring its parameters from master weights on nvme moves.
LinkBytes restoration_traffic(const TrainingStateSpec& spec, const SubGroup& group);

// The reservations that TrainingState claims: "<kind> on device", "<kind> on host", "whole units",
// "state file", and "<kind> file" for parameters and gradients.
std::vector<Reservation> reservations_for(const TrainingStateSpec& spec);

// Kinds that have files of their own, where a part of them lives on nvme; the files, by kind; and
// how large they are.
inline constexpr std::array<StateKind, 3> kFileKinds = {StateKind::param, StateKind::frozen,
                                                        StateKind::grad};
using ShardFiles = std::array<std::optional<io::StripedFile>, kStateKindCount>;
uint64_t shard_file_bytes(const TrainingStateSpec& spec, StateKind kind);
std::string shard_file_name(StateKind kind);

class TrainingState {
 public:
  // `store` and `pump` are null when no optimizer state, or nothing at all, lives on nvme.
  // `transfer` is a device queue for read() and write(). All must outlive this object.
  TrainingState(TrainingStateSpec spec, TierManager& tiers, SlotStore* store, Pump* pump,
                Queue& transfer, ShardFiles files = {});

  const TrainingStateSpec& spec() const { return spec_; }
  SlotStore* store() const { return store_; }

  // Address of a grain's first element; null where it lives on nvme. The address holds for the
  // rest of the grain's run in that tier, or in its whole unit.
  std::byte* resident(StateKind kind, int64_t grain) const;
  // The buffer of whole units.
  std::byte* whole() const { return whole_.data(); }
  // Files of kinds that have their own.
  const ShardFiles& files() const { return files_; }
  // A transfer between `data` and grains of one of kFileKinds that live on nvme.
  IoCommand shard_command(StateKind kind, GrainRange grains, std::byte* data) const;

  // Copies grains of one sub-group, which start at a disk block, between their tier and
  // `buffer`: pinned host memory aligned to 4096 bytes, with room for padded_bytes(), laid out as
  // stored; of frozen ones, grains of one tier. Blocks. Not for use while a step is under way:
  // these are the verbs of initialization, digests and checkpoints. write() fills every slot.
  // Throws IoError.
  void read(StateKind kind, GrainRange grains, std::byte* buffer) {
    read(kind, grains, buffer, {store_ != nullptr ? store_->current_slot() : 0, transfer_});
  }
  // From where read() reads: of optimizer state on nvme a slot, of memory by a queue of the device.
  struct Source {
    int slot = 0;
    Queue& queue;
    Account account = Account::step;
  };
  // The same beside steps under way, on another thread: of what they leave as it is, a pinned slot
  // and frozen parameters.
  void read(StateKind kind, GrainRange grains, std::byte* buffer, const Source& source);
  void write(StateKind kind, GrainRange grains, const std::byte* buffer);

 private:
  struct Array {
    Arena device;
    Arena host;
  };
  // The sub-group of a transfer. Throws Error when there are several.
  const SubGroup& sub_group_of(GrainRange grains) const;
  int32_t index_of(StateKind kind, GrainRange grains) const;
  // Between memory; `on_device` is the direction where the grains lie on the device.
  struct Copy {
    StateKind kind = StateKind::other;
    GrainRange grains;
    std::byte* to = nullptr;
    const std::byte* from = nullptr;
    CopyDirection on_device = CopyDirection::device_to_host;
  };
  void copy(const Copy& copy, Queue& queue, Account account) const;
  // With the disk; blocks.
  void transfer(io::Op op, IoCommand command, Account account) const;
  IoCommand slot_command(StateKind kind, GrainRange grains, Extent extent, std::byte* data) const;

  const TrainingStateSpec spec_;
  SlotStore* const store_;
  Pump* const pump_;
  Queue& transfer_;
  const ShardFiles files_;
  std::array<Array, kStateKindCount> arrays_;
  Arena whole_;
};

}  // namespace strata::offload
