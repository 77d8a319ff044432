// Which rank this process is, of how many.
#pragma once

#include <string>

namespace strata {

struct World {
  int rank = 0;
  int size = 1;
  int local_rank = 0;  // among the ranks of this machine

  // Reads what mpirun (OMPI_COMM_WORLD_*), Slurm (SLURM_PROCID, SLURM_NTASKS) and torchrun (RANK,
  // WORLD_SIZE) set; one process when none did. Throws ConfigError where they make no sense.
  static World from_environment();
};

}  // namespace strata
