// Blocks of the machine's memory straight from the kernel.
#pragma once

#include <cstddef>

namespace strata {

class PageSpread;

inline constexpr size_t kPageBytes = 4096;
inline constexpr size_t kHugePageBytes = size_t{2} << 20;

// Zero-filled and resident memory aligned to kPageBytes; from kHugePageBytes on aligned to that, on
// huge pages where the kernel has them, spread as `spread` says, or as the kernel does where
// it is null. Throws DeviceError when the machine has no more.
void* map_resident(size_t bytes, const PageSpread* spread = nullptr);

// Gives back what map_resident(bytes) returned: touching it afterwards faults.
void unmap_resident(void* data, size_t bytes) noexcept;

}  // namespace strata
