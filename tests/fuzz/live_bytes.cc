#include "tests/fuzz/live_bytes.h"

#include <malloc.h>

#include <algorithm>
#include <cstdlib>
#include <new>

namespace {

thread_local int64_t live = 0;
thread_local int64_t peak = 0;

void* take_or_null(size_t bytes, size_t alignment) {
  void* const data = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  live += static_cast<int64_t>(malloc_usable_size(data));
  peak = std::max(peak, live);
  return data;
}

void* take(size_t bytes, size_t alignment) {
  void* const data = take_or_null(bytes, alignment);
  if (data == nullptr) throw std::bad_alloc();
  return data;
}

void give_back(void* data) {
  if (data == nullptr) return;
  live -= static_cast<int64_t>(malloc_usable_size(data));
  std::free(data);
}

constexpr size_t kPlain = __STDCPP_DEFAULT_NEW_ALIGNMENT__;

}  // namespace

void* operator new(size_t bytes) { return take(bytes, kPlain); }
void* operator new[](size_t bytes) { return take(bytes, kPlain); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return take(bytes, static_cast<size_t>(alignment));
}
void* operator new[](size_t bytes, std::align_val_t alignment) {
  return take(bytes, static_cast<size_t>(alignment));
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return take_or_null(bytes, kPlain);
}
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept {
  return take_or_null(bytes, kPlain);
}
void operator delete(void* data) noexcept { give_back(data); }
void operator delete[](void* data) noexcept { give_back(data); }
void operator delete(void* data, const std::nothrow_t&) noexcept { give_back(data); }
void operator delete[](void* data, const std::nothrow_t&) noexcept { give_back(data); }
void operator delete(void* data, size_t) noexcept { give_back(data); }
void operator delete[](void* data, size_t) noexcept { give_back(data); }
void operator delete(void* data, std::align_val_t) noexcept { give_back(data); }
void operator delete[](void* data, std::align_val_t) noexcept { give_back(data); }
void operator delete(void* data, size_t, std::align_val_t) noexcept { give_back(data); }
void operator delete[](void* data, size_t, std::align_val_t) noexcept { give_back(data); }

namespace strata::fuzzing {

void restart_live_bytes() { live = peak = 0; }
int64_t peak_live_bytes() { return peak; }

}  // namespace strata::fuzzing
