// Counts what a test program takes from the system, on all its threads, its libraries included:
// malloc and its kin, operator new, mmap, pthread_create, open and its kin are replaced by ones
// that count. A program has this by linking interposition.cc. In sanitized builds, which have a
// malloc of their own, operator new alone is counted.
#pragma once

#include <cstdint>
#include <string>

namespace strata::testing_support {

struct Acquisitions {
  int64_t memory = 0;    // blocks from malloc, calloc, realloc, posix_memalign, ..., operator new
  int64_t apart = 0;     // likewise, by the code of the library that count_apart() named
  int64_t mappings = 0;  // mmap
  int64_t threads = 0;   // pthread_create
  int64_t files = 0;     // open, openat, fopen, ...

  bool operator==(const Acquisitions&) const = default;
  Acquisitions operator-(const Acquisitions& other) const;
};
std::ostream& operator<<(std::ostream& out, const Acquisitions& acquisitions);

// Since the program began.
Acquisitions acquisitions();

// From now on, what code calls that lies in the loaded library whose file name contains `library`
// is counted apart. False when there is none.
bool count_apart(const char* library);

// From now on, notes from where the first few are acquired, but for those counted apart.
void note_origins();
// Ends that; their stacks, a frame a line ("" for none), for addr2line.
std::string noted_origins();

}  // namespace strata::testing_support
