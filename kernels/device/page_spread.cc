#include "kernels/device/page_spread.h"

#include "strata/error.h"

namespace strata {

PageSpread::PageSpread(const std::vector<int>& nodes) : nodes_(hwloc_bitmap_alloc()) {
  if (nodes.empty() || nodes_ == nullptr) return;
  HwlocTopology topology;
  try {
    topology = load_topology();
  } catch (const DeviceError&) {
    return;
  }
  hwloc_membind_policy_t policy = HWLOC_MEMBIND_DEFAULT;
  const bool known = hwloc_get_membind(topology.get(), nodes_.get(), &policy,
                                       HWLOC_MEMBIND_THREAD | HWLOC_MEMBIND_BYNODESET) == 0;
  if (known && policy != HWLOC_MEMBIND_DEFAULT && policy != HWLOC_MEMBIND_FIRSTTOUCH) return;
  hwloc_bitmap_zero(nodes_.get());
  for (const int node : nodes) hwloc_bitmap_set(nodes_.get(), static_cast<unsigned>(node));
  topology_ = std::move(topology);
}

void PageSpread::apply(void* data, size_t bytes) const {
  if (topology_ == nullptr) return;
  hwloc_set_area_membind(topology_.get(), data, bytes, nodes_.get(), HWLOC_MEMBIND_INTERLEAVE,
                         HWLOC_MEMBIND_BYNODESET);
}

}  // namespace strata
