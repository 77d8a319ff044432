#include "engine/comm/libraries.h"

namespace strata::engine {

std::string nccl_library() { return "no NCCL"; }

}  // namespace strata::engine
