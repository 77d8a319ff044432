// Which rank this process is, of how many.
#pragma once

#include <memory>
#include <string>
#include <vector>

namespace strata {

namespace engine {
class LocalGroup;
}

struct World {
  int rank = 0;
  int size = 1;
  int local_rank = 0;  // among the ranks of this machine
  int local_size = 1;  // how many those are
  bool bound = false;  // the launcher gave this rank cores of its own
  // Where ranks that are threads of this process meet; null where ranks are processes.
  std::shared_ptr<engine::LocalGroup> group = nullptr;
  // Where ranks that are processes meet over TCP: rank 0 listens there. Without an address they
  // meet in MPI.
  struct Master {
    std::string address = {};  // IPv4, or a name of one
    int port = 0;
  };
  Master master = {};

  // Reads what mpirun (OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE), torchrun (RANK,
  // WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE) or Slurm's srun (SLURM_PROCID, SLURM_NTASKS,
  // SLURM_LOCALID, SLURM_STEP_TASKS_PER_NODE) set, in this order; one process when none did. Where
  // the last one is not set, all ranks count as on this machine. Throws ConfigError where they make
  // no sense.
  //
  // Where torchrun or srun started the ranks and MASTER_ADDR is set, they connect over TCP at
  // MASTER_ADDR and MASTER_PORT; at the port after it where TORCHELASTIC_USE_AGENT_STORE is "True",
  // since torchrun itself listens at the first. Otherwise they connect through MPI, which mpirun
  // and srun --mpi=pmix start.
  static World from_environment();

  // `size` ranks within this process: give each to an engine on a thread of its own. For tests, and
  // for trying a configuration of several ranks without a launcher.
  static std::vector<World> local(int size);
};

}  // namespace strata
