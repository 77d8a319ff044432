// Preloaded into a program: from the STRATA_READS_BEFORE_DEATH-th on, its reads at an offset never
// return, as those of a file system whose server is gone.
#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>

namespace {

std::atomic<long> reads = 0;

bool is_dead() {
  static const char* const limit = std::getenv("STRATA_READS_BEFORE_DEATH");
  return limit != nullptr && reads++ >= std::atol(limit);
}

}  // namespace

extern "C" ssize_t pread(int fd, void* data, size_t bytes, off_t offset) {
  using Read = ssize_t(int, void*, size_t, off_t);
  static Read* const next = reinterpret_cast<Read*>(dlsym(RTLD_NEXT, "pread"));
  while (is_dead()) pause();
  return next(fd, data, bytes, offset);
}
