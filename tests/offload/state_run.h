// A training in miniature: a rank's state on disk in two slots, steps that derive every byte from
// the step before, and commits. What is written, sealed, read and checked goes the way that the
// engine's does; only the update is a toy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "offload/slot_store.h"
#include "offload/tier_manager.h"
#include "offload/training_state.h"
#include "tests/offload/offload_fixture.h"

namespace strata::offload {

// What outlives a process: a rank's named files. With them, memory that all its lives share.
class StateSite {
 public:
  StateSite();

  const TrainingStateSpec& spec() const { return spec_; }
  SlotStore::Files open();
  std::string state_path() const { return directory_.file("state"); }
  std::string journal_path() const { return directory_.file("journal"); }

  Device& device() { return *device_; }
  Queue& queue() { return *queue_; }
  std::span<std::byte> record() const { return {record_.data(), record_.bytes()}; }
  // For a sub-group's whole extent; one lies behind the other.
  std::span<std::byte> buffer(int32_t sub_group) const;
  // All extents of generation 0, one after the other.
  std::span<const uint64_t> initial() const { return initial_; }

 private:
  TemporaryDirectory directory_;
  NullLogSink log_;
  NullTrafficSink traffic_;
  const std::unique_ptr<Device> device_;
  const std::unique_ptr<Queue> queue_;
  const TrainingStateSpec spec_;
  const uint64_t extent_bytes_;
  const MemoryBlock record_;
  const MemoryBlock buffers_;
  const std::vector<uint64_t> initial_;
};

// One life of a rank over its site. Driven by one thread; every verb blocks.
class StateRun {
 public:
  StateRun(StateSite& site, Pump& pump, bool checksums = true);
  // A step that failed may have left requests under way.
  ~StateRun() { pump_.quiesce(); }

  // Generation 0.
  void begin();
  // The step behind the last commit, without its own. `salt` stands for its data.
  void step(uint64_t salt);
  void commit();
  // As SlotStore::recover(); the generation.
  std::optional<uint64_t> recover(
      uint64_t newest_generation = std::numeric_limits<uint64_t>::max());
  // Reads everything: whether every byte is what steps with these salts made.
  bool holds(std::span<const uint64_t> salts);

 private:
  StateSite& site_;
  Pump& pump_;
  TierManager tiers_;
  SlotStore store_;
  TrainingState state_;
};

}  // namespace strata::offload
