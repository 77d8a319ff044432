// What a run has on nvme: the files, the pump that moves bytes to and from them, and the slots and
// journal of the optimizer state.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/checkpoint/state_directory.h"
#include "engine/plan/planner.h"
#include "engine/runtime/parts.h"
#include "io/striped_file.h"
#include "offload/pump.h"
#include "offload/slot_store.h"
#include "offload/tier_manager.h"
#include "offload/training_state.h"
#include "strata/config.h"
#include "strata/log.h"
#include "strata/traffic.h"

namespace strata::engine {

class NvmeStore {
 public:
  struct Parts {
    const Disturbance& disturbance;  // of the constructor only
    TrafficSink& traffic;
    LogSink& log;
    // Where the slots outlive the process: null for scratch; and what they are laid out for.
    StateDirectory* state_directory = nullptr;
    uint64_t state_hash = 0;
  };
  // Writes the files, as large as they will be. `plan`, `config`, `tiers`, traffic and log must
  // outlive the store. Throws IoError.
  NvmeStore(const Plan& plan, const Config& config, const Parts& parts,
            offload::TierManager& tiers);

  offload::Pump& pump() { return pump_; }
  // Whether the slots' files were there: they hold what the journal says.
  bool has_old_state() const { return has_old_state_; }
  // Null where no optimizer state is here.
  offload::SlotStore* slots() { return slots_ ? &*slots_ : nullptr; }
  // Files of other kinds of training state, for it to take.
  offload::ShardFiles take_shard_files() { return std::exchange(shard_files_, {}); }
  // Null where no activations are here.
  const io::FileSpace* activations() const { return activations_ ? &*activations_ : nullptr; }
  // Registers memory and files that I/O touches; all of the memory has been claimed.
  void attach();
  // A start-up line: the engine in force, where the files are, and what is in them.
  std::string description() const;

 private:
  io::StripedFile make_file(const char* name, uint64_t bytes, const Parts& parts);
  void make_slots(const Parts& parts);
  offload::SlotStore::Files slot_files(const offload::SlotLayout& layout, const Parts& parts);
  void note(const io::StripedFile& file, const char* name);

  const Plan& plan_;
  const Config& config_;
  offload::TierManager& tiers_;
  offload::Arena journal_record_;
  const io::Stripes stripes_;  // of every file but the journal
  std::optional<offload::SlotStore> slots_;
  offload::ShardFiles shard_files_;
  std::optional<io::StripedFile> activations_;
  std::vector<int> descriptors_;  // of all files
  bool direct_ = true;            // all of them
  bool has_old_state_ = false;
  std::string paths_;
  // Its transfers use the files and the memory above: it goes first, and waits for them.
  offload::Pump pump_;
};

}  // namespace strata::engine
