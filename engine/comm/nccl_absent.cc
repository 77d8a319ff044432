// In place of nccl_library.cc and nccl_fabric.cc where the build has no NCCL.
#include "engine/comm/fabric.h"
#include "engine/comm/libraries.h"
#include "strata/error.h"

namespace strata::engine {

std::string nccl_library() { return "no NCCL"; }

std::unique_ptr<Fabric> make_nccl_fabric(Transport& /*bootstrap*/, double /*timeout_s*/) {
  throw ConfigError(
      "several ranks compute on GPUs, and Strata was built without NCCL: build it where nccl.h is, "
      "or set strata.device to \"host\"");
}

}  // namespace strata::engine
