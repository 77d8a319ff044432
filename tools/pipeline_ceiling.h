// What a step over state on disk could take at best: its transfers without an update, and its
// updates without a transfer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "io/block_file.h"
#include "offload/optimizer_pipeline.h"
#include "offload/pump.h"
#include "offload/training_state.h"
#include "tools/bench.h"

namespace strata::tools {

// Where the parts of a sub-group's lane begin, and where it ends, in bytes. All sub-groups are
// taken to be as large as the first.
struct LaneLayout {
  explicit LaneLayout(const offload::TrainingStateSpec& spec);

  uint64_t grad;   // after the state
  uint64_t param;  // after the gradients
  uint64_t bytes;
};

// Driven by one thread.
class PipelineCeiling {
 public:
  struct Parts {
    const offload::TrainingStateSpec& spec;  // its state all on nvme
    offload::Pump& pump;
    Queue& host_update;
    offload::UpdateFn update;
  };
  // Works in `lanes` places in memory, as many as the pipeline has staging buffers, and in `file`,
  // of file_bytes(). What `parts` refers to must outlive it. Throws DeviceError.
  PipelineCeiling(Parts parts, int lanes, io::BlockFile file);

  static uint64_t memory_bytes(const offload::TrainingStateSpec& spec, int lanes);
  static uint64_t file_bytes(const offload::TrainingStateSpec& spec);

  // Writes the whole file once.
  void fill();
  // A step's transfers in the same mix, block size and depth: measured over as many sub-groups as
  // the file holds.
  double transfers_s();
  // A step's updates, the best of several: measured over the lanes.
  double updates_s();

 private:
  std::byte* lane(int64_t index) const;
  // A sub-group's reads, or its writes. Blocks.
  void transfer(std::byte* lane, int64_t place, io::Op op);
  offload::Ticket submit(io::Op op, std::byte* data, uint64_t offset, uint64_t bytes);
  // The time of all sub-groups, where these took `seconds`.
  double of_all(double seconds, int64_t sub_groups) const;

  const Parts parts_;
  const LaneLayout layout_;
  const int lanes_;
  const BenchMemory memory_;
  const io::BlockFile file_;
};

}  // namespace strata::tools
