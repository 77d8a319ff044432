// Staging buffers: a fixed number of pinned buffers that sub-groups pass through on their way
// between nvme and the update, or from the update to the device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "offload/tier_manager.h"
#include "offload/training_state.h"

namespace strata::offload {

// Whether a sub-group passes through a staging buffer; the others are updated in place.
bool needs_staging(const TrainingStateSpec& spec, const SubGroup& group);

// What the buffers take; a pure function of the sub-groups.
struct StagingLayout {
  int buffers = 0;           // 0: nothing needs staging
  uint64_t state_bytes = 0;  // a buffer's room for the nvme kinds of the largest sub-group,
  uint64_t grad_bytes = 0;   // for its gradients from nvme,
  uint64_t param_bytes = 0;  // and for its parameters on their way to and from the device or nvme
  uint64_t buffer_bytes() const { return state_bytes + grad_bytes + param_bytes; }
};
StagingLayout staging_layout(const TrainingStateSpec& spec, int buffers);
std::vector<Reservation> reservations_for(const StagingLayout& layout);

// The buffers, handed out and taken back. Not thread-safe.
class StagingBuffers {
 public:
  StagingBuffers(const StagingLayout& layout, TierManager& tiers);

  const StagingLayout& layout() const { return layout_; }
  bool empty() const { return free_.empty(); }
  std::byte* take();
  void give_back(std::byte* buffer) { free_.push_back(buffer); }

 private:
  const StagingLayout layout_;
  const Arena memory_;
  std::vector<std::byte*> free_;
};

}  // namespace strata::offload
