// What the kernel did is what you see: one transfer per submission, no retry, no resumption.
//
// Below IoEngine, so that a fault-injecting decorator can sit between the two and the engine's
// handling of short transfers and errors is what production runs. Implementations: io_uring,
// threads with pread/pwrite, and the decorator.
#pragma once

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "strata/log.h"

namespace strata::io {

enum class Op : uint8_t { read, write, flush };

inline constexpr uint32_t kMaxTransferBytes = 1u << 30;

struct Transfer {
  Op op = Op::read;
  int fd = -1;
  uint64_t offset = 0;        // bytes
  std::byte* data = nullptr;  // caller's until the completion is reaped
  uint32_t bytes = 0;         // 1 .. kMaxTransferBytes; unused for flush (fdatasync)
  uint64_t cookie = 0;        // comes back in the completion; any value but UINT64_MAX
};

struct Completion {
  uint64_t cookie = 0;
  int32_t result = 0;  // bytes transferred, or -errno; never interpreted here
};

// Memory and files that transfers will touch again and again.
struct IoResources {
  std::vector<std::span<std::byte>> buffers = {};  // apart from each other, in any order
  std::vector<int> files = {};                     // descriptors
};

// One owner thread submits and reaps: the first that does either, not necessarily the one that
// constructed. wake() is for any thread. Nothing is allocated after construction.
class IoBackend {
 public:
  // Waits for transfers under way: their buffers are not touched afterwards. On the owner thread
  // unless nothing is under way.
  virtual ~IoBackend() = default;

  // Lets the kernel prepare for these resources: the same transfers, for less. At most once, by the
  // owner thread, with nothing under way; it may allocate. What the kernel refuses is done without,
  // which name() says. From here on the memory stays mapped and the files stay open as long as
  // transfers are made with this backend, for the kernel remembers the pages and the files, not the
  // addresses and the descriptors.
  virtual void attach(const IoResources&) {}

  // Takes a transfer; std::logic_error when max_in_flight() are under way already. Never blocks.
  // Transfers may be held for one system call together: they start at the latest at the next
  // reap(), whatever its timeout.
  virtual void submit(const Transfer& transfer) = 0;

  // Copies finished completions into `out` and returns how many. Waits up to `timeout` for the
  // first one, or until wake(); negative: without limit. May return 0 early (a signal, for one).
  virtual size_t reap(std::span<Completion> out, std::chrono::milliseconds timeout) = 0;

  // Makes a reap that waits now, or the next one, return early.
  virtual void wake() = 0;

  virtual uint32_t max_in_flight() const = 0;
  // "io_uring" or "threads", with what is registered behind it and decorators' names around it.
  virtual std::string name() const = 0;
};

// Throws IoError where the kernel or the container forbids io_uring (ENOSYS, EPERM) or the kernel
// is older than 5.11.
std::unique_ptr<IoBackend> make_uring_backend(uint32_t max_in_flight);
// `threads` workers with blocking pread and pwrite.
std::unique_ptr<IoBackend> make_thread_backend(uint32_t max_in_flight, int threads);

enum class BackendChoice : uint8_t {
  automatic,  // io_uring, or threads with one warning that says why
  io_uring,   // or an IoError
  threads,
};
// `threads` is how many workers the thread backend gets where it is the one.
std::unique_ptr<IoBackend> make_backend(BackendChoice choice, uint32_t max_in_flight, int threads,
                                        LogSink& log);

// How often each fault of a plan came.
struct FaultTally {
  int64_t errors = 0;
  int64_t short_transfers = 0;
  int64_t again = 0;
  int64_t delays = 0;
};

// A transfer that does not come back: the `at`th (from 0) of its kind is not begun until `*until`.
struct Hang {
  Op op = Op::read;
  int64_t at = 0;
  const std::atomic<bool>* until = nullptr;  // outlives the backend
};

// Faults in a seeded order; probabilities in 1/1000 of transfers.
struct FaultPlan {
  uint64_t seed = 1;
  int short_transfer_permille = 0;  // does 1 byte .. all but one byte of it
  int error_permille = 0;           // EIO without touching anything
  int again_permille = 0;           // EAGAIN or EINTR without touching anything
  int delay_permille = 0;           // completion held back for up to max_delay_us
  int max_delay_us = 500;
  bool reorder = false;  // completions that are ready are handed out shuffled
  int64_t fail_at = -1;  // an error at exactly this transfer, counted from 0
  int fail_errno = EIO;  // the one at fail_at
  std::optional<Hang> hang = {};
  FaultTally* tally = nullptr;  // written by the backend's owner; outlives it
};
// After a short read the bytes behind the reported ones are poisoned; after a short write they are
// not written, up to the 4 KiB that direct I/O has to round to.
std::unique_ptr<IoBackend> make_fault_backend(std::unique_ptr<IoBackend> inner,
                                              const FaultPlan& plan);

}  // namespace strata::io
