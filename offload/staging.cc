#include "offload/staging.h"

#include <algorithm>

namespace strata::offload {
namespace {

constexpr const char* kStagingName = "optimizer staging";

}  // namespace

bool needs_staging(const TrainingStateSpec& spec, const SubGroup& group) {
  return spec.on_disk(group) || group.grad_tier == Tier::nvme ||
         group.param_tier != group.update_tier();
}

StagingLayout staging_layout(const TrainingStateSpec& spec, int buffers) {
  StagingLayout layout;
  for (const SubGroup& group : spec.sub_groups) {
    const auto bytes = [&](StateKind kind) {
      return static_cast<uint64_t>(group.grains.grains() * spec.grain_bytes(kind));
    };
    layout.state_bytes = std::max(layout.state_bytes, spec.extent_bytes(group));
    if (group.grad_tier == Tier::nvme) {
      layout.grad_bytes = std::max(layout.grad_bytes, bytes(StateKind::grad));
    }
    if (group.param_tier != group.update_tier()) {
      layout.param_bytes = std::max(layout.param_bytes, bytes(StateKind::param));
    }
  }
  layout.buffers = layout.buffer_bytes() == 0 ? 0 : buffers;
  return layout;
}

std::vector<Reservation> reservations_for(const StagingLayout& layout) {
  if (layout.buffers == 0) return {};
  return {{Tier::host, StateKind::other, kStagingName,
           static_cast<uint64_t>(layout.buffers) * layout.buffer_bytes()}};
}

StagingBuffers::StagingBuffers(const StagingLayout& layout, TierManager& tiers)
    : layout_(layout), memory_(tiers.claim(kStagingName)) {
  for (int i = layout_.buffers; i-- > 0;) {
    free_.push_back(memory_.data() + static_cast<uint64_t>(i) * layout_.buffer_bytes());
  }
}

std::byte* StagingBuffers::take() {
  std::byte* buffer = free_.back();
  free_.pop_back();
  return buffer;
}

}  // namespace strata::offload
