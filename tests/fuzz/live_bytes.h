// Counts the bytes that operator new has given out, on the calling thread.
#pragma once

#include <cstdint>

namespace strata::fuzzing {

// Counts from nothing from now on.
void restart_live_bytes();
// The most that were in use at a time since.
int64_t peak_live_bytes();

}  // namespace strata::fuzzing
