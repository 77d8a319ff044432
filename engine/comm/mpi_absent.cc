#include "engine/comm/libraries.h"
#include "engine/comm/mpi_transport.h"
#include "strata/error.h"

namespace strata::engine {

std::string mpi_library() { return "no MPI"; }

std::unique_ptr<Transport> make_mpi_transport(const World&, const MpiTransportOptions&) {
  throw ConfigError(
      "this build has no MPI to connect several processes: set MASTER_ADDR and MASTER_PORT so that "
      "they connect over TCP, or start one process");
}

}  // namespace strata::engine
