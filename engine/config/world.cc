#include "strata/world.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <string_view>

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
  bool is_mpi;             // ranks meet in MPI, whatever else is set
};

// In the order in which they are asked: mpirun and torchrun run inside Slurm's jobs, not the other
// way round. A Slurm batch script has SLURM_NTASKS without being a rank; only a step has an id.
constexpr Launcher kLaunchers[] = {
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
     "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_MCA_orte_bound_at_launch",
     true},
    {"WORLD_SIZE", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", nullptr, false},
    {"SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE",
     "SLURM_CPU_BIND_LIST", false},
};

// An integer from min to end - 1 that must be set where `because` is.
struct Number {
  const char* variable;
  int min;
  int end;
  const char* because;
  bool may_repeat = false;  // "4(x2),3" counts as 4
};

int value_of(const Number& number) {
  const char* const text = std::getenv(number.variable);
  if (text == nullptr) {
    throw ConfigError(fmt::format("environment: {} is set but {} is not: set both, or neither",
                                  number.because, number.variable));
  }
  int value = 0;
  const char* const text_end = text + std::strlen(text);
  const auto parsed = std::from_chars(text, text_end, value);
  const bool ends = parsed.ptr == text_end || (number.may_repeat && *parsed.ptr == '(');
  if (parsed.ec != std::errc() || !ends || value < number.min || value >= number.end) {
    throw ConfigError(
        fmt::format("environment: {} is \"{}\": set it to an integer from {} to {}, or unset {}",
                    number.variable, text, number.min, number.end - 1, number.because));
  }
  return value;
}

// torchrun's agent may keep MASTER_PORT for a store of its own, and says so. The next port is ours
// then, on all ranks.
bool port_is_taken() {
  const char* const taken = std::getenv("TORCHELASTIC_USE_AGENT_STORE");
  return taken != nullptr && std::string_view(taken) == "True";
}

World::Master master_in_environment() {
  constexpr int kPorts = 1 << 16;
  const char* const address = std::getenv("MASTER_ADDR");
  if (address == nullptr || *address == '\0') return {};
  const int offset = port_is_taken() ? 1 : 0;
  return {address, value_of({"MASTER_PORT", 1, kPorts - offset, "MASTER_ADDR"}) + offset};
}

}  // namespace

World World::from_environment() {
  constexpr int kMaxRanks = 1 << 20;
  for (const Launcher& launcher : kLaunchers) {
    if (std::getenv(launcher.present) == nullptr) continue;
    World world;
    world.size = value_of({launcher.size, 1, kMaxRanks, launcher.present});
    world.rank = value_of({launcher.rank, 0, world.size, launcher.present});
    world.local_rank = value_of({launcher.local_rank, 0, world.size, launcher.present});
    world.local_size =
        std::getenv(launcher.local_size) == nullptr
            ? world.size
            : value_of({launcher.local_size, 1, world.size + 1, launcher.present, true});
    world.bound = launcher.bound != nullptr && std::getenv(launcher.bound) != nullptr;
    if (world.size > 1 && !launcher.is_mpi) world.master = master_in_environment();
    return world;
  }
  return {};
}

}  // namespace strata
