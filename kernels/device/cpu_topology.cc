#include "kernels/device/cpu_topology.h"

#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <system_error>

#include "kernels/device/hwloc_topology.h"
#include "kernels/device/team_partition.h"
#include "strata/error.h"

namespace strata {
namespace {

// The kernel refuses masks that are smaller than its own: they grow until they suffice.
constexpr int kFirstMaskCpus = 1024;
constexpr int kMostMaskCpus = 1 << 20;

struct FreeMask {
  void operator()(cpu_set_t* mask) const { CPU_FREE(mask); }
};

// A mask for CPUs 0 to `cpus` - 1, empty.
class Mask {
 public:
  explicit Mask(int cpus) : bytes_(CPU_ALLOC_SIZE(cpus)), mask_(CPU_ALLOC(cpus)) {
    if (mask_ == nullptr) throw std::bad_alloc();
    CPU_ZERO_S(bytes_, mask_.get());
  }
  size_t bytes() const { return bytes_; }
  cpu_set_t* get() const { return mask_.get(); }
  bool has(int cpu) const { return CPU_ISSET_S(cpu, bytes_, mask_.get()); }
  void add(int cpu) { CPU_SET_S(cpu, bytes_, mask_.get()); }

 private:
  const size_t bytes_;
  const std::unique_ptr<cpu_set_t, FreeMask> mask_;
};

// In the topology's own order, which is by nearness.
Machine machine_of(const HwlocTopology& topology, const std::vector<int>& allowed) {
  Machine machine;
  machine.nodes = std::max(1, hwloc_get_nbobjs_by_type(topology.get(), HWLOC_OBJ_NUMANODE));
  hwloc_obj_t unit = nullptr;
  while ((unit = hwloc_get_next_obj_by_type(topology.get(), HWLOC_OBJ_PU, unit)) != nullptr) {
    const auto number = static_cast<int>(unit->os_index);
    if (!std::binary_search(allowed.begin(), allowed.end(), number)) continue;
    const hwloc_obj_t core = hwloc_get_ancestor_obj_by_type(topology.get(), HWLOC_OBJ_CORE, unit);
    machine.cpus.push_back(
        {.number = number,
         .core = static_cast<int>((core != nullptr ? core : unit)->logical_index),
         .node = std::max(0, hwloc_bitmap_first(unit->nodeset))});
  }
  if (machine.cpus.empty()) throw DeviceError("hwloc knows none of the CPUs that may be used");
  return machine;
}

Machine flat_machine(const CpuPlace& allowed) {
  Machine machine;
  for (const int cpu : allowed) machine.cpus.push_back({.number = cpu, .core = cpu, .node = 0});
  return machine;
}

// Asks for what is so already.
bool may_bind(const CpuPlace& allowed) {
  try {
    bind_this_thread(allowed);
    return true;
  } catch (const std::system_error&) {
    return false;
  }
}

}  // namespace

HwlocTopology load_topology(const std::string& synthetic) {
  hwloc_topology_t bare = nullptr;
  bool loaded = hwloc_topology_init(&bare) == 0;
  HwlocTopology topology(bare);
  if (loaded && !synthetic.empty()) {
    loaded = hwloc_topology_set_synthetic(bare, synthetic.c_str()) == 0;
  }
  if (!loaded || hwloc_topology_load(bare) != 0) {
    throw DeviceError("hwloc cannot read the machine's topology");
  }
  return topology;
}

Machine this_machine() {
  const CpuPlace allowed = place_of_this_thread();
  Machine machine;
  try {
    machine = machine_of(load_topology(), allowed);
  } catch (const DeviceError&) {
    machine = flat_machine(allowed);
  }
  machine.may_bind = may_bind(allowed);
  return machine;
}

Machine synthetic_machine(const std::string& description, const std::vector<int>& allowed) {
  std::vector<int> sorted = allowed;
  std::sort(sorted.begin(), sorted.end());
  return machine_of(load_topology(description), sorted);
}

std::vector<Cpu> share_of(std::span<const Cpu> cpus, int part, int parts) {
  const auto count = static_cast<int64_t>(cpus.size());
  const internal::Range range = internal::partition(count, 1, part, parts);
  return {cpus.begin() + range.begin, cpus.begin() + range.end};
}

int core_count(std::span<const Cpu> cpus) {
  int count = 0;
  for (size_t i = 0; i < cpus.size(); ++i) {
    if (i == 0 || cpus[i].core != cpus[i - 1].core) ++count;
  }
  return count;
}

std::vector<int> nodes_of(std::span<const Cpu> cpus) {
  std::vector<int> nodes;
  for (const Cpu& cpu : cpus) nodes.push_back(cpu.node);
  std::sort(nodes.begin(), nodes.end());
  nodes.erase(std::unique(nodes.begin(), nodes.end()), nodes.end());
  return nodes;
}

std::vector<CpuPlace> places_for(std::span<const Cpu> cpus, int threads) {
  std::vector<CpuPlace> places;
  if (static_cast<size_t>(threads) > cpus.size()) return places;
  for (int thread = 0; thread < threads; ++thread) {
    CpuPlace& place = places.emplace_back();
    for (const Cpu& cpu : share_of(cpus, thread, threads)) place.push_back(cpu.number);
  }
  return places;
}

CpuPlace place_of_this_thread() {
  int error_number = EINVAL;
  for (int cpus = kFirstMaskCpus; cpus <= kMostMaskCpus && error_number == EINVAL; cpus *= 2) {
    const Mask mask(cpus);
    if (sched_getaffinity(0, mask.bytes(), mask.get()) == 0) {
      CpuPlace place;
      for (int cpu = 0; cpu < cpus; ++cpu) {
        if (mask.has(cpu)) place.push_back(cpu);
      }
      return place;
    }
    error_number = errno;
  }
  throw std::system_error(error_number, std::generic_category(),
                          "reading a thread's affinity mask");
}

void bind_this_thread(const CpuPlace& place) {
  Mask mask(*std::max_element(place.begin(), place.end()) + 1);
  for (const int cpu : place) mask.add(cpu);
  if (sched_setaffinity(0, mask.bytes(), mask.get()) == 0) return;
  throw std::system_error(errno, std::generic_category(), "binding a thread to its CPUs");
}

}  // namespace strata
