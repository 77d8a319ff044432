// A run's optimizer state on nvme: the files, the pump that moves bytes to and from them, and the
// slots and journal in them.
#pragma once

#include <string>

#include "engine/plan/planner.h"
#include "engine/runtime/parts.h"
#include "offload/pump.h"
#include "offload/slot_store.h"
#include "offload/tier_manager.h"
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
  };
  // Writes the files, as large as they will be. `plan`, `config`, `tiers`, traffic and log must
  // outlive the store. Throws IoError.
  NvmeStore(const Plan& plan, const Config& config, const Parts& parts,
            offload::TierManager& tiers);

  offload::Pump& pump() { return pump_; }
  offload::SlotStore& slots() { return slots_; }
  // Registers memory and files that I/O touches; all of the memory has been claimed.
  void attach();
  // A start-up line: the engine in force, where the files are, and what is in them.
  std::string description() const;

 private:
  offload::SlotStore::Files make_files(const Parts& parts);

  const Plan& plan_;
  const Config& config_;
  offload::TierManager& tiers_;
  offload::Arena journal_record_;  // the pump's memory too: goes after it
  offload::Pump pump_;
  offload::SlotStore slots_;
};

}  // namespace strata::engine
