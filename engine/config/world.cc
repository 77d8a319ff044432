#include "strata/world.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdlib>
#include <cstring>

#include "strata/error.h"

namespace strata {
namespace {

// The variables in which a launcher says who a process is. `present` is set exactly in processes
// that the launcher started as ranks.
struct Launcher {
  const char* present;
  const char* rank;
  const char* size;
  const char* local_rank;
  const char* local_size;  // "4", or Slurm's "4(x2),3": the number before the first bracket
  const char* bound;       // set where a rank has cores of its own
};

// In the order in which they are asked: mpirun and torchrun run inside Slurm's jobs, not the other
// way round. A Slurm batch script has SLURM_NTASKS without being a rank; only a step has an id.
constexpr Launcher kLaunchers[] = {
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
     "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_MCA_orte_bound_at_launch"},
    {"WORLD_SIZE", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", nullptr},
    {"SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE",
     "SLURM_CPU_BIND_LIST"},
};

int integer_in(const char* variable, int min, int end, const Launcher& launcher) {
  const char* const text = std::getenv(variable);
  if (text == nullptr) {
    throw ConfigError(fmt::format("environment: {} is set but {} is not: set both, or neither",
                                  launcher.present, variable));
  }
  int value = 0;
  const char* const text_end = text + std::strlen(text);
  const auto parsed = std::from_chars(text, text_end, value);
  const bool ends =
      parsed.ptr == text_end || (variable == launcher.local_size && *parsed.ptr == '(');
  if (parsed.ec != std::errc() || !ends || value < min || value >= end) {
    throw ConfigError(
        fmt::format("environment: {} is \"{}\": set it to an integer from {} to {}, or unset {}",
                    variable, text, min, end - 1, launcher.present));
  }
  return value;
}

}  // namespace

World World::from_environment() {
  constexpr int kMaxRanks = 1 << 20;
  for (const Launcher& launcher : kLaunchers) {
    if (std::getenv(launcher.present) == nullptr) continue;
    World world;
    world.size = integer_in(launcher.size, 1, kMaxRanks, launcher);
    world.rank = integer_in(launcher.rank, 0, world.size, launcher);
    world.local_rank = integer_in(launcher.local_rank, 0, world.size, launcher);
    world.local_size = std::getenv(launcher.local_size) == nullptr
                           ? world.size
                           : integer_in(launcher.local_size, 1, world.size + 1, launcher);
    world.bound = launcher.bound != nullptr && std::getenv(launcher.bound) != nullptr;
    return world;
  }
  return {};
}

}  // namespace strata
