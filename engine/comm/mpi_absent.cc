#include "engine/comm/libraries.h"

namespace strata::engine {

std::string mpi_library() { return "no MPI"; }

}  // namespace strata::engine
