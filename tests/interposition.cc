#include "tests/interposition.h"

#include <dlfcn.h>
#include <execinfo.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <ostream>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define STRATA_HAS_OWN_MALLOC 0
#else
#define STRATA_HAS_OWN_MALLOC 1
#endif

namespace {

using Counter = std::atomic<int64_t>;
Counter memory = 0;
Counter memory_apart = 0;
Counter mappings = 0;
Counter threads = 0;
Counter files = 0;

// The code of the library that is counted apart.
std::atomic<uintptr_t> apart_begin = 0;
std::atomic<uintptr_t> apart_end = 0;

struct Origin {
  std::array<void*, 24> frames;
  int depth = 0;
};
std::array<Origin, 16> origins;
std::atomic<size_t> origins_noted = 0;
std::atomic<bool> notes = false;
thread_local bool noting = false;  // backtrace() may allocate

void note_origin() {
  if (!notes || noting || origins_noted >= origins.size()) return;
  noting = true;
  const size_t at = origins_noted++;
  if (at < origins.size()) {
    Origin& origin = origins[at];
    origin.depth = backtrace(origin.frames.data(), static_cast<int>(origin.frames.size()));
  }
  noting = false;
}

void count(Counter& counter) {
  ++counter;
  note_origin();
}

void count_memory(const void* caller) {
  const auto address = reinterpret_cast<uintptr_t>(caller);
  if (address >= apart_begin && address < apart_end) {
    ++memory_apart;
  } else {
    count(memory);
  }
}

// The next definition of a function in the order of libraries.
template <typename Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

// glibc's own, beneath the names that are replaced here.
extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* data, size_t bytes);
}

#if STRATA_HAS_OWN_MALLOC
namespace {
void* plain_new(size_t bytes) { return __libc_malloc(bytes); }
void* aligned_new(size_t alignment, size_t bytes) { return __libc_memalign(alignment, bytes); }
}  // namespace

extern "C" {

void* malloc(size_t bytes) {
  count_memory(__builtin_return_address(0));
  return __libc_malloc(bytes);
}

void* calloc(size_t count, size_t bytes) {
  count_memory(__builtin_return_address(0));
  return __libc_calloc(count, bytes);
}

void* realloc(void* data, size_t bytes) {
  count_memory(__builtin_return_address(0));
  return __libc_realloc(data, bytes);
}

void* memalign(size_t alignment, size_t bytes) {
  count_memory(__builtin_return_address(0));
  return __libc_memalign(alignment, bytes);
}

void* aligned_alloc(size_t alignment, size_t bytes) {
  count_memory(__builtin_return_address(0));
  return __libc_memalign(alignment, bytes);
}

int posix_memalign(void** data, size_t alignment, size_t bytes) {
  count_memory(__builtin_return_address(0));
  *data = __libc_memalign(alignment, bytes);
  return *data != nullptr ? 0 : ENOMEM;
}

void* mmap(void* address, size_t bytes, int protection, int flags, int file, off_t offset) {
  count(mappings);
  return reinterpret_cast<void*>(
      syscall(SYS_mmap, address, bytes, protection, flags, file, offset));
}

void* mmap64(void* address, size_t bytes, int protection, int flags, int file, off64_t offset) {
  count(mappings);
  return reinterpret_cast<void*>(
      syscall(SYS_mmap, address, bytes, protection, flags, file, offset));
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*),
                   void* argument) {
  static auto* const next_create = next<decltype(pthread_create)>("pthread_create");
  count(threads);
  return next_create(thread, attributes, start, argument);
}

// The mode is there, and used, only where a file may be made.
#define STRATA_COUNTED_OPEN(name, directory, ...)                                    \
  int name(__VA_ARGS__, int flags, ...) {                                            \
    va_list more;                                                                    \
    va_start(more, flags);                                                           \
    const bool creates = (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE; \
    const mode_t mode = creates ? va_arg(more, mode_t) : 0;                          \
    va_end(more);                                                                    \
    count(files);                                                                    \
    return static_cast<int>(syscall(SYS_openat, directory, path, flags, mode));      \
  }
STRATA_COUNTED_OPEN(open, AT_FDCWD, const char* path)
STRATA_COUNTED_OPEN(open64, AT_FDCWD, const char* path)
STRATA_COUNTED_OPEN(openat, at, int at, const char* path)
STRATA_COUNTED_OPEN(openat64, at, int at, const char* path)

FILE* fopen(const char* path, const char* mode) {
  static auto* const next_open = next<FILE*(const char*, const char*)>("fopen");
  count(files);
  return next_open(path, mode);
}

FILE* fopen64(const char* path, const char* mode) {
  static auto* const next_open = next<FILE*(const char*, const char*)>("fopen64");
  count(files);
  return next_open(path, mode);
}

}  // extern "C"
#else
namespace {
void* plain_new(size_t bytes) { return std::malloc(bytes); }
void* aligned_new(size_t alignment, size_t bytes) {
  void* data = nullptr;
  return posix_memalign(&data, alignment, bytes) == 0 ? data : nullptr;
}
}  // namespace
#endif

// Not left to the library's, whose malloc would have the library for a caller.
void* operator new(size_t bytes) {
  count_memory(__builtin_return_address(0));
  if (void* data = plain_new(bytes)) return data;
  throw std::bad_alloc();
}
void* operator new(size_t bytes, std::align_val_t alignment) {
  count_memory(__builtin_return_address(0));
  if (void* data = aligned_new(static_cast<size_t>(alignment), bytes)) return data;
  throw std::bad_alloc();
}
void* operator new[](size_t bytes) {
  count_memory(__builtin_return_address(0));
  if (void* data = plain_new(bytes)) return data;
  throw std::bad_alloc();
}
void operator delete(void* data) noexcept { std::free(data); }
void operator delete(void* data, size_t) noexcept { std::free(data); }
void operator delete(void* data, std::align_val_t) noexcept { std::free(data); }
void operator delete(void* data, size_t, std::align_val_t) noexcept { std::free(data); }
void operator delete[](void* data) noexcept { std::free(data); }
void operator delete[](void* data, size_t) noexcept { std::free(data); }

namespace strata::testing_support {

Acquisitions Acquisitions::operator-(const Acquisitions& other) const {
  return {memory - other.memory, apart - other.apart, mappings - other.mappings,
          threads - other.threads, files - other.files};
}

std::ostream& operator<<(std::ostream& out, const Acquisitions& acquisitions) {
  return out << acquisitions.memory << " blocks of memory, " << acquisitions.apart
             << " more apart, " << acquisitions.mappings << " mappings, " << acquisitions.threads
             << " threads, " << acquisitions.files << " files";
}

Acquisitions acquisitions() { return {memory, memory_apart, mappings, threads, files}; }

bool count_apart(const char* library) {
  const auto find = [](dl_phdr_info* info, size_t, void* wanted) {
    if (std::strstr(info->dlpi_name, static_cast<const char*>(wanted)) == nullptr) return 0;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const ElfW(Phdr)& part = info->dlpi_phdr[i];
      if (part.p_type != PT_LOAD || (part.p_flags & PF_X) == 0) continue;
      apart_begin = info->dlpi_addr + part.p_vaddr;
      apart_end = apart_begin + part.p_memsz;
    }
    return 1;
  };
  return dl_iterate_phdr(find, const_cast<char*>(library)) == 1;
}

void note_origins() {
  std::array<void*, 1> frame;
  backtrace(frame.data(), 1);  // the first call loads a library
  origins_noted = 0;
  notes = true;
}

std::string noted_origins() {
  notes = false;
  std::string text;
  for (size_t i = 0; i < std::min(origins_noted.load(), origins.size()); ++i) {
    char** symbols = backtrace_symbols(origins[i].frames.data(), origins[i].depth);
    text += "\nacquired at";
    for (int frame = 0; frame < origins[i].depth; ++frame) {
      text += std::string("\n  ") + symbols[frame];
    }
    std::free(symbols);
  }
  return text;
}

}  // namespace strata::testing_support
