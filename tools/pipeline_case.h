// What `strata bench pipeline` measures: a rank's AdamW state on disk, kept in one way, and the
// pipeline that updates it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/ops/state_ops.h"
#include "offload/pipeline_rig.h"
#include "offload/recorder.h"
#include "strata/codec.h"
#include "strata/log.h"
#include "tools/pipeline_ceiling.h"

namespace strata::tools {

struct PipelineSetting {
  int64_t numel = 0;            // a multiple of the grain
  int64_t sub_group_numel = 0;  // likewise
  int staging_buffers = 0;
  Tier grad = Tier::host;   // or nvme; bf16
  Tier param = Tier::host;  // or nvme; bf16
  Codec master = Codec::fp32;
  Codec moments = Codec::fp32;
  int threads = 0;
  std::string path;  // a directory
};

// Driven by one thread.
class PipelineCase {
 public:
  // Makes scratch files and allocates everything. Throws ConfigError, IoError or DeviceError.
  explicit PipelineCase(const PipelineSetting& setting);

  // Bytes that a case with this setting holds in host memory, and on disk.
  static uint64_t memory_bytes(const PipelineSetting& setting);
  static uint64_t disk_bytes(const PipelineSetting& setting);

  using Progress = std::function<void(int64_t done, int64_t all)>;  // in grains
  // Writes the initial state: every file is written once.
  void fill(const Progress& progress);
  // Writes the gradients of a step, counted from 1; they differ from those of any other.
  void write_gradients(int64_t step, const Progress& progress);
  // One AdamW step over everything, to the last byte written. Seconds.
  double run_step(int64_t step);
  PipelineCeiling& ceiling() { return *ceiling_; }

  // Whether so many steps moved what the formula says. Throws Error.
  void check_traffic(int64_t steps) const;
  // Compares sampled grains of state as it is kept, and of parameters, with the same update done in
  // memory. Throws CorruptionError for bits that differ, and for parameters that did not change.
  void check_sample(int64_t step);

  const PipelineSetting& setting() const { return setting_; }
  LinkBytes planned() const;  // of one step
  int64_t sub_groups() const { return static_cast<int64_t>(order_.size()); }
  int64_t sampled_numel() const { return static_cast<int64_t>(samples_.size()) * kGrainNumel; }
  std::string io_description() const;

 private:
  // A grain whose steps are also done in memory, as it is kept.
  struct Sample {
    int64_t grain = 0;
    std::array<std::vector<std::byte>, kOptimizerKindCount> state;
    std::vector<std::byte> param;
  };

  void update(const offload::UpdateSpans& spans, Queue& queue) const;
  ops::EncodedSpans encoded(const offload::UpdateSpans& spans) const;
  void add_samples();
  void check(int64_t grain, StateKind kind, const std::vector<std::byte>& expected);

  const PipelineSetting setting_;
  const std::unique_ptr<ops::StateOps> ops_;
  ops::OptimizerScalars scalars_;  // of the step under way
  NullLogSink log_;
  offload::Recorder recorder_{0};
  const std::unique_ptr<offload::Pump> pump_;
  std::vector<int32_t> order_;  // the pipeline reads ahead in it to its end
  offload::PipelineRig rig_;
  std::unique_ptr<PipelineCeiling> ceiling_;
  std::vector<Sample> samples_;
};

}  // namespace strata::tools
