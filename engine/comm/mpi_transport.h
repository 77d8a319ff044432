// Ranks as processes under MPI: pairwise messages, polled, with a watch over the others' lives.
#pragma once

#include <cstdint>
#include <memory>

#include "engine/comm/transport.h"
#include "strata/world.h"

namespace strata::engine {

struct MpiTransportOptions {
  double timeout_s = 600;
  // What goes in one message at most, up to MPI's INT_MAX. The same on all ranks.
  uint64_t chunk_bytes = uint64_t{16} << 20;
};

// Collective over all processes that mpirun or srun started, in the same order on every rank, one
// thread at a time. Initializes MPI the first time (mpi_process.h). Throws ConfigError where
// `world` is not what MPI sees and where this build has no MPI, CommError when ranks do not come
// within the timeout.
//
// A trade's timeout counts from the last message that came or went. A trade that throws gives up
// its messages; MPI may touch those that were half done until the process ends.
std::unique_ptr<Transport> make_mpi_transport(const World& world,
                                              const MpiTransportOptions& options);

}  // namespace strata::engine
