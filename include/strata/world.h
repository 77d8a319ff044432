// Which rank this process is, of how many.
#pragma once

#include <string>

namespace strata {

struct World {
  int rank = 0;
  int size = 1;
  int local_rank = 0;  // among the ranks of this machine

  // Reads what mpirun (OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK), torchrun (RANK, WORLD_SIZE,
  // LOCAL_RANK) or Slurm's srun (SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID) set, in this order;
  // one process when none did. Throws ConfigError where they make no sense.
  static World from_environment();
};

}  // namespace strata
