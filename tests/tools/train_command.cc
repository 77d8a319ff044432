#include "tests/tools/train_command.h"

namespace strata::testing_support {

std::string strata_binary() { return STRATA_BINARY; }

}  // namespace strata::testing_support
