// Memory that nobody may read until it is written again.
#pragma once

#include <cstddef>
#include <cstring>

#include "kernels/device/device.h"

namespace strata {

// In debug and sanitizer builds, on the host device: fills the bytes with NaNs of every dtype, in
// queue order, so that a reader that waits for too little, or a writer that leaves something out,
// shows.
inline void poison([[maybe_unused]] Queue& queue, [[maybe_unused]] void* data,
                   [[maybe_unused]] size_t bytes) {
#ifdef STRATA_POISON
  if (queue.native_handle() == nullptr) queue.run([=] { std::memset(data, 0xff, bytes); });
#endif
}

}  // namespace strata
