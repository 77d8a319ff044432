#include "engine/runtime/cpu_binding.h"

#include <fmt/format.h>

#include <cstdlib>

namespace strata::engine {
namespace {

// With these a person tells OpenMP where its threads run, or that they are fewer than a team's.
constexpr const char* kOpenMpVariables[] = {"OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY",
                                            "OMP_DYNAMIC", "OMP_THREAD_LIMIT"};

// A rank that the launcher gave CPUs of its own has just those.
bool shares_cpus(const World& world) { return world.local_size > 1 && !world.bound; }

// Why nothing is bound to these CPUs; "" where it is.
std::string reason_not_to_bind(const Config& config, const World& world, const Machine& machine) {
  if (config.cpu_binding == CpuBindingChoice::none) return "strata.cpu_binding is \"none\"";
  for (const char* variable : kOpenMpVariables) {
    if (std::getenv(variable) != nullptr) return fmt::format("{} is set", variable);
  }
  if (!machine.may_bind) return "the system does not let threads be bound";
  const size_t cpus = machine.cpus.size();
  if (shares_cpus(world) && static_cast<size_t>(world.local_size) > cpus) {
    return fmt::format("{} ranks share {} CPU{}", world.local_size, cpus, cpus == 1 ? "" : "s");
  }
  return "";
}

std::string count_text(int count, const char* thing) {
  return fmt::format("{} {}{}", count, thing, count == 1 ? "" : "s");
}

}  // namespace

CpuBinding cpu_binding(const Config& config, const World& world, const Machine& machine,
                       int threads) {
  CpuBinding binding;
  std::vector<Cpu> cpus = machine.cpus;
  std::string reason = reason_not_to_bind(config, world, machine);
  if (reason.empty()) {
    if (shares_cpus(world)) cpus = share_of(cpus, world.local_rank, world.local_size);
    binding.places = places_for(cpus, threads);
    if (binding.places.empty()) {
      reason = fmt::format("{} are more than {}", count_text(threads, "thread"),
                           count_text(static_cast<int>(cpus.size()), "CPU"));
    }
  }
  // Threads that are not bound run on all of them.
  const std::vector<int> nodes = nodes_of(binding.places.empty() ? machine.cpus : cpus);
  if (machine.nodes > 1) binding.memory_nodes = nodes;
  binding.description =
      reason.empty()
          ? fmt::format("update threads on {} of {}", count_text(core_count(cpus), "core"),
                        count_text(static_cast<int>(nodes.size()), "NUMA node"))
          : fmt::format("update threads are not bound: {}", reason);
  return binding;
}

}  // namespace strata::engine
