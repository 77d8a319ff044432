// The order that a library's hand-over of an object between threads makes, told to ThreadSanitizer,
// which does not see into a library that was built without it. Outside of its builds both do
// nothing.
#pragma once

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace strata::offload {

// Before the object is given to the library.
inline void hand_over([[maybe_unused]] void* object) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(object);
#endif
}

// First thing where the library brings it.
inline void take_over([[maybe_unused]] void* object) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(object);
#endif
}

}  // namespace strata::offload
