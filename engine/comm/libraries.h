// The communication libraries this build can use, for --version. An absent one is a link-time stub
// chosen at configure time, so callers never ask which it is.
#pragma once

#include <string>

namespace strata::engine {

// "Open MPI v4.1.4"; "no MPI" when built without.
std::string mpi_library();

// "NCCL 2.27.7"; "no NCCL (...)" when built without, or when the library is not on this machine: it
// is opened when first needed, so that one binary starts with and without it.
std::string nccl_library();

}  // namespace strata::engine
