// What a ring is told once: memory that the kernel pins for good, and files that it looks up for
// good. A transfer through them costs the kernel less than one that names an address and a
// descriptor.
#pragma once

#include <liburing.h>
#include <sys/uio.h>

#include <string>
#include <vector>

#include "io/io_backend.h"

namespace strata::io {

// Used by the ring's one thread. Nothing is allocated after attach().
class UringRegistration {
 public:
  // At most once. What the kernel refuses is done without, each kind by itself.
  void attach(io_uring& ring, const IoResources& resources);

  // Fills in `sqe` for a transfer, by way of what is registered where it can.
  void prepare(io_uring_sqe* sqe, const Transfer& transfer) const;

  // "", or what is registered and why not more: ", registered buffers and files".
  std::string describe() const;

 private:
  static constexpr int kNone = -1;
  int buffer_index(const Transfer& transfer) const;
  int file_index(int fd) const;

  std::vector<iovec> buffers_;  // by address; a buffer's index is its place here, as in the kernel
  std::vector<int> files_;      // likewise
  int buffers_error_ = 0;       // errno of a refusal
  int files_error_ = 0;
};

}  // namespace strata::io
