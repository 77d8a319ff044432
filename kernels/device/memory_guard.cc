#include "kernels/device/memory_guard.h"

#include <sys/mman.h>

#include "kernels/device/host_memory.h"
#include "strata/error.h"
#include "strata/grain.h"

namespace strata {
namespace {

void set_protection(void* data, size_t bytes, int protection) {
  const auto pages = round_up(static_cast<int64_t>(bytes), static_cast<int64_t>(kPageBytes));
  if (mprotect(data, static_cast<size_t>(pages), protection) == 0) return;
  throw DeviceError("mprotect: memory of the device cannot be guarded");
}

}  // namespace

void MemoryGuard::add(void* data, size_t bytes) {
  const std::lock_guard lock(mutex_);
  blocks_.emplace(data, bytes);
  if (inside_ == 0) set_protection(data, bytes, PROT_NONE);
}

void MemoryGuard::remove(void* data) {
  const std::lock_guard lock(mutex_);
  blocks_.erase(data);
}

void MemoryGuard::enter() {
  const std::lock_guard lock(mutex_);
  if (inside_++ == 0) protect(PROT_READ | PROT_WRITE);
}

void MemoryGuard::leave() {
  const std::lock_guard lock(mutex_);
  if (--inside_ == 0) protect(PROT_NONE);
}

void MemoryGuard::protect(int protection) const {
  for (const auto& [data, bytes] : blocks_) set_protection(data, bytes, protection);
}

}  // namespace strata
