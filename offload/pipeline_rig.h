// A rank's training state over scratch files, and the pipeline that updates it, on a host device
// and without an engine around: what tests and benches of the pipeline stand on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/device/host_device.h"
#include "offload/optimizer_pipeline.h"
#include "offload/pump.h"
#include "offload/slot_store.h"
#include "offload/tier_manager.h"
#include "offload/training_state.h"
#include "strata/log.h"

namespace strata::offload {

struct PipelineRigSetting {
  TrainingStateSpec spec;
  int staging_buffers = 1;
  bool overlap = true;
  uint64_t transfer_bytes = 0;  // of transfer()
  std::string path;             // directory of the files
  int update_threads = 1;       // of updates on the host
  bool checksums = true;        // as SlotStore::Memory's
  HostDeviceOptions device;
  uint64_t update_delay_seed = 0;  // of updates on the host, as HostDeviceOptions::delay_seed
};

// Driven by one thread.
class PipelineRig {
 public:
  // Makes the files and allocates everything. `pump` is null when nothing lives on nvme; it and
  // `traffic` must outlive the rig. Throws IoError or DeviceError.
  PipelineRig(const PipelineRigSetting& setting, Pump* pump, TrafficSink& traffic, UpdateFn update);

  // What a rig takes, by name and tier.
  static std::vector<Reservation> reservations(const PipelineRigSetting& setting);

  TrainingState& state() { return *state_; }
  const TrainingStateSpec& spec() const { return state_->spec(); }
  OptimizerPipeline& pipeline() { return *pipeline_; }
  SlotStore& store() const { return *state_->store(); }  // of state on nvme
  Queue& host_update() { return *host_update_; }
  // Pinned memory for read() and write() of state; with two slots a commit overwrites its start.
  const Arena& transfer() const { return transfer_; }

 private:
  void make_files(const PipelineRigSetting& setting, Pump& pump, ShardFiles& shards);

  const std::unique_ptr<Device> device_;
  const std::unique_ptr<Queue> device_update_;
  const std::unique_ptr<Queue> copy_;
  const std::unique_ptr<Queue> param_in_;
  const std::unique_ptr<Queue> param_out_;
  const std::unique_ptr<Queue> host_update_;
  TierManager tiers_;
  const Arena transfer_;
  NullLogSink log_;
  std::optional<SlotStore> store_;
  std::optional<TrainingState> state_;
  std::optional<OptimizerPipeline> pipeline_;
};

}  // namespace strata::offload
