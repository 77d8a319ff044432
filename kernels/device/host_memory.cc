#include "kernels/device/host_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>

#include "kernels/device/page_spread.h"
#include "strata/error.h"

namespace strata {
namespace {

// Larger requests are refused before rounding them up could overflow.
constexpr size_t kMaxBytes = std::numeric_limits<ptrdiff_t>::max();

size_t mapped_bytes(size_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

[[noreturn]] void throw_no_memory(size_t bytes, int error_number) {
  throw DeviceError("mapping " + std::to_string(bytes) +
                    " bytes of host memory: " + std::strerror(error_number));
}

std::byte* map(size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw_no_memory(bytes, errno);
  return static_cast<std::byte*>(data);
}

// Maps a huge page more than asked and gives both ends back.
std::byte* map_huge_aligned(size_t bytes) {
  std::byte* base = map(bytes + kHugePageBytes);
  const size_t head = -reinterpret_cast<uintptr_t>(base) % kHugePageBytes;
  const size_t tail = kHugePageBytes - head;
  if (head > 0) munmap(base, head);
  if (tail > 0) munmap(base + head + bytes, tail);
  // Only a hint: a kernel without huge pages refuses it, and small pages do.
  madvise(base + head, bytes, MADV_HUGEPAGE);
  return base + head;
}

// Has the kernel back every page now, so that lack of memory is an error here, and page faults do
// not fall into a training step.
void populate(std::byte* data, size_t bytes) {
  while (madvise(data, bytes, MADV_POPULATE_WRITE) != 0) {
    if (errno == EINTR || errno == EAGAIN) continue;
    if (errno != EINVAL) {
      const int error_number = errno;
      munmap(data, bytes);
      throw_no_memory(bytes, error_number);
    }
    // Before Linux 5.14: touch the pages one by one.
    volatile std::byte* page = data;
    for (size_t offset = 0; offset < bytes; offset += kPageBytes) page[offset] = std::byte{0};
    return;
  }
}

}  // namespace

void* map_resident(size_t bytes, const PageSpread* spread) {
  if (bytes > kMaxBytes) throw_no_memory(bytes, ENOMEM);
  const size_t length = mapped_bytes(bytes);
  std::byte* data = length < kHugePageBytes ? map(length) : map_huge_aligned(length);
  if (spread != nullptr) spread->apply(data, length);
  populate(data, length);
  return data;
}

void unmap_resident(void* data, size_t bytes) noexcept { munmap(data, mapped_bytes(bytes)); }

}  // namespace strata
