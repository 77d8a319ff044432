// A rank's training state on disk and the pipeline that updates it, without an engine around: what
// `strata bench pipeline` measures.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/device/device.h"
#include "kernels/ops/state_ops.h"
#include "offload/optimizer_pipeline.h"
#include "offload/pump.h"
#include "offload/recorder.h"
#include "offload/slot_store.h"
#include "offload/tier_manager.h"
#include "offload/training_state.h"
#include "strata/log.h"

namespace strata::tools {

struct PipelineSetting {
  int64_t numel = 0;            // a multiple of the grain
  int64_t sub_group_numel = 0;  // likewise
  int staging_buffers = 0;
  Tier grad = Tier::host;   // or nvme; 16 bit
  Tier param = Tier::host;  // or nvme; 16 bit
  int threads = 0;
  std::string path;  // a directory
  uint32_t block_bytes = 1 << 20;
  uint32_t queue_depth = 32;
};

// Driven by one thread.
class PipelineRig {
 public:
  // Makes scratch files and allocates everything. Throws ConfigError, IoError or DeviceError.
  explicit PipelineRig(const PipelineSetting& setting);
  ~PipelineRig();

  // Bytes that the rig will hold in host memory with this setting.
  static uint64_t memory_bytes(const PipelineSetting& setting);
  static uint64_t disk_bytes(const PipelineSetting& setting);

  using Progress = std::function<void(int64_t done, int64_t all)>;  // in grains
  // Writes the initial state: every file is written once.
  void fill(const Progress& progress);
  // Writes the gradients of a step, counted from 1; they differ from those of any other.
  void write_gradients(int64_t step, const Progress& progress);

  // One AdamW step over everything, to the last byte written. Seconds.
  double run_step(int64_t step);
  // The same transfers in the same mix, block size and depth, without an update: of as many
  // sub-groups as the ceiling's file holds. Seconds.
  double run_transfers();
  // Elements that run_transfers() stands for.
  int64_t transferred_numel() const;
  // An update of one sub-group in memory, alone. Seconds.
  double run_update();
  // Whether one step after another moved what the formula says. Throws Error.
  void check_traffic(int64_t steps) const;

  int64_t sub_groups() const;
  LinkBytes planned() const;  // of one step
  std::string io_description() const;

  // Compares sampled grains of master weights, moments and parameters with the same update done in
  // memory. Throws CorruptionError for bits that differ, and for parameters that did not change.
  void check_sample(int64_t step);
  int64_t sampled_numel() const { return static_cast<int64_t>(samples_.size()) * kGrainNumel; }

 private:
  struct Sample {
    int64_t grain = 0;
    std::vector<float> master, exp_avg, exp_avg_sq;
    std::vector<uint16_t> grad, param;
  };
  // A place in the ceiling's staging memory, and what is under way there.
  struct Lane {
    std::byte* data = nullptr;
    std::vector<offload::Ticket> tickets;
    void wait();
  };

  void make_files(const offload::TrainingStateSpec& spec);
  // Calls visit(chunk) for runs of grains that the chunk buffer holds, and then progress.
  template <typename Visit>
  void for_chunks(const Progress& progress, const Visit& visit);
  // Makes the chunk's elements of a kind from value_of(element), and writes them.
  template <typename T, typename ValueOf>
  void write_chunk(StateKind kind, GrainRange chunk, const ValueOf& value_of);
  offload::StagingLayout pipeline_layout() const;
  void add_samples();
  void check(const Sample& sample, StateKind kind, const void* expected);
  void write_ceiling(int64_t sub_group);
  void start_transfers(Lane& lane, int64_t sub_group, io::Op op);

  static constexpr int64_t kChunkGrains = 1024;

  const PipelineSetting setting_;
  NullLogSink log_;
  offload::Recorder recorder_{0};
  std::unique_ptr<Device> device_;
  std::unique_ptr<Queue> device_queue_;
  std::unique_ptr<Queue> param_in_;
  std::unique_ptr<Queue> param_out_;
  std::unique_ptr<Queue> transfer_queue_;
  std::unique_ptr<Queue> host_update_;
  std::unique_ptr<ops::StateOps> ops_;
  std::optional<offload::TierManager> tiers_;
  offload::Arena chunk_;  // of one kind, as stored
  offload::Arena ceiling_staging_;
  std::optional<io::BlockFile> ceiling_file_;
  std::unique_ptr<offload::Pump> pump_;
  std::optional<offload::SlotStore> store_;
  std::optional<offload::TrainingState> state_;
  std::vector<int32_t> order_;  // the pipeline reads ahead in it to its end
  std::optional<offload::OptimizerPipeline> pipeline_;
  int64_t ceiling_sub_groups_ = 0;
  std::vector<Lane> lanes_;
  std::vector<Sample> samples_;
  ops::OptimizerScalars scalars_;  // of the step under way
};

}  // namespace strata::tools
