// Owns what hwloc knows of a machine.
#pragma once

#include <hwloc.h>

#include <memory>
#include <string>

namespace strata {

struct HwlocDelete {
  void operator()(hwloc_topology_t topology) const { hwloc_topology_destroy(topology); }
  void operator()(hwloc_bitmap_t bitmap) const { hwloc_bitmap_free(bitmap); }
};
using HwlocTopology = std::unique_ptr<hwloc_topology, HwlocDelete>;
using HwlocBitmap = std::unique_ptr<hwloc_bitmap_s, HwlocDelete>;

// Of this machine, or of a synthetic one where a description is given. Throws DeviceError.
HwlocTopology load_topology(const std::string& synthetic = "");

}  // namespace strata
