#include <mpi.h>

#include <array>
#include <string>

#include "engine/comm/libraries.h"

namespace strata::engine {

std::string mpi_library() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text = {};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);  // allowed before MPI_Init
  const std::string version(text.data());
  return version.substr(0, version.find(','));
}

}  // namespace strata::engine
