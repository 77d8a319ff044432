// Counts what a test program allocates with new. In a file of its own: the compiler must not see
// through a replaced operator new.
#pragma once

#include <cstdint>

namespace strata {

// Calls of operator new, on any thread, since the program began.
int64_t allocations();

}  // namespace strata
