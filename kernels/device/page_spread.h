// Which NUMA nodes host memory comes from.
//
// Pages are dealt to the nodes in turn. Putting each beside the thread that will use it (first
// touch) would be right for some of them only: a staging buffer takes one sub-group after another,
// of different lengths, whose state kinds then start elsewhere in it, and the update's partition
// cuts each one anew. Dealt out, every thread finds the same mix of near and far pages, and the
// update has the bandwidth of all its nodes.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/device/hwloc_topology.h"

namespace strata {

class PageSpread {
 public:
  // Over these nodes; with one, all pages come from there while it has any. Without nodes, and
  // where the process was started with a policy of its own (numactl), the kernel chooses.
  explicit PageSpread(const std::vector<int>& nodes);

  // For pages that nothing has touched yet. Only a hint: where the kernel refuses it, it chooses.
  void apply(void* data, size_t bytes) const;

 private:
  HwlocTopology topology_;  // null: the kernel chooses
  HwlocBitmap nodes_;
};

}  // namespace strata
