// The CPUs that this process may use, where they are, and how ranks and threads divide them.
//
// A CPU is a hardware thread, by the number that the system gives it.
#pragma once

#include <span>
#include <string>
#include <vector>

namespace strata {

struct Cpu {
  int number = 0;
  int core = 0;
  int node = 0;  // NUMA node
};

struct Machine {
  std::vector<Cpu> cpus;  // to be used; neighbours beside each other: by NUMA node, core, thread
  int nodes = 1;          // NUMA nodes in all
  bool may_bind = true;   // whether the system lets threads be bound; some containers do not
};

// What the calling thread's affinity mask and the process's cgroup leave of this machine. Where
// hwloc cannot say more (a masked /sys), each CPU is a core and all are of one node. Throws
// std::system_error where the system does not tell the mask.
Machine this_machine();
// What `allowed` leaves of a machine in hwloc's words ("pack:2 numa:1 core:4 pu:2"); for tests.
// Throws DeviceError for words that hwloc does not know.
Machine synthetic_machine(const std::string& description, const std::vector<int>& allowed);

// Part `part` of `parts`: all parts are disjoint, each in one piece, and as even as may be.
std::vector<Cpu> share_of(std::span<const Cpu> cpus, int part, int parts);

// Cores, and NUMA nodes, that these are of.
int core_count(std::span<const Cpu> cpus);
std::vector<int> nodes_of(std::span<const Cpu> cpus);

// Where one thread may run: numbers of CPUs.
using CpuPlace = std::vector<int>;

// A place for each of `threads` threads. They divide the CPUs among them: with one thread a core,
// each keeps to its core's hardware threads, and with fewer each still has several to choose from.
// None where there are more threads than CPUs: the system shares those out better.
std::vector<CpuPlace> places_for(std::span<const Cpu> cpus, int threads);

// Of the calling thread; not empty. Threads that it starts later begin with the same. Throws
// std::system_error when the system refuses.
CpuPlace place_of_this_thread();
void bind_this_thread(const CpuPlace& place);

}  // namespace strata
