// Which CPUs a rank's update keeps to, and which NUMA nodes its memory comes from.
//
// Only the threads of the update on the host are bound: its partition is static, so each then works
// on the same part of each sub-group with the same caches and on the same NUMA node, step after
// step. Everything else (layers, I/O, queues, oneTBB) runs where the system puts it.
#pragma once

#include <string>
#include <vector>

#include "kernels/device/cpu_topology.h"
#include "strata/config.h"
#include "strata/world.h"

namespace strata::engine {

struct CpuBinding {
  std::vector<CpuPlace> places;   // of the update's threads; none: they are not bound
  std::vector<int> memory_nodes;  // that the rank's memory is dealt to; none: the kernel chooses
  std::string description;        // a start-up line
};

// For an update of `threads` threads. Ranks that share a machine's CPUs take a part each. Nothing
// is bound where CPUs are too few for that, or where the environment tells OpenMP what to bind.
CpuBinding cpu_binding(const Config& config, const World& world, const Machine& machine,
                       int threads);

}  // namespace strata::engine
