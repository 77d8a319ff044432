// Requests in, checked byte counts out.
//
// IoEngine cuts requests into transfers of at most `block_bytes` in one file each, keeps up to the
// backend's depth of them under way, resumes short transfers at an aligned offset, retries EINTR
// and EAGAIN, and completes a request once every byte is accounted for or one error is known *and*
// none of its transfers still touches the buffer. A read past the end of the file is an IoError,
// never a short count.
//
// Requests are not ordered among themselves: a flush, of every file, makes durable what had
// completed when it was submitted, so the caller reaps the writes first.
//
// Threads: one owner thread calls submit() and reap(); wake() is for any thread. The owner of an
// IoRequest is the caller; the engine keeps a pointer from submit() until reap() hands it back.
// Nothing is allocated after construction.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "io/block_file.h"
#include "io/io_backend.h"
#include "strata/traffic.h"

namespace strata::io {

struct IoRequest {
  // Set by the caller; `file` and `data` stay put until the request is handed back.
  Op op = Op::read;
  const FileSpace* file = nullptr;
  uint64_t offset = 0;        // multiple of file->offset_alignment()
  std::byte* data = nullptr;  // aligned to file->memory_alignment()
  uint64_t bytes = 0;         // multiple of file->offset_alignment(); 0 for flush
  TrafficTag tag;
  void* user = nullptr;

  // Set by the engine before reap() hands the request back.
  int error = 0;  // errno of the first failure; 0 and !ok(): unexpected end of file
  const BlockFile* error_file = nullptr;  // of the files, the one where it happened
  uint64_t error_offset = 0;              // and where in it
  uint64_t done_bytes = 0;                // == bytes exactly when ok()
  bool ok() const { return !failed && done_bytes == bytes; }
  // The failure as an IoError naming path, offset and errno.
  void throw_if_failed() const;

  // The engine's own, while under way.
  bool failed = false;
  uint64_t started = 0;  // bytes, or of a flush files, whose transfer has begun
  uint32_t transfers_in_flight = 0;
  int64_t begin_ns = 0;  // when its first transfer started
  IoRequest* next = nullptr;
};

class IoEngine {
 public:
  struct Options {
    uint32_t block_bytes = 1 << 20;  // rounded down to the file's alignment
  };
  // `traffic` must outlive the engine. Throws ConfigError for a block size of 0 or above
  // kMaxTransferBytes.
  IoEngine(std::unique_ptr<IoBackend> backend, const Options& options, TrafficSink& traffic);
  // Requests still under way are dropped, after waiting for their transfers as ~IoBackend does.
  ~IoEngine();
  IoEngine(const IoEngine&) = delete;
  IoEngine& operator=(const IoEngine&) = delete;

  // As IoBackend::attach.
  void attach(const IoResources& resources) { backend_->attach(resources); }

  // Takes the request, which may wait for the next reap() to start. Requests start in order of
  // submission and complete in any order. Throws IoError (EINVAL) for misaligned or out-of-file
  // ranges before anything is transferred.
  void submit(IoRequest& request);

  // Hands back finished requests, waiting up to `timeout` for the first (negative: without limit)
  // or until wake(). Each handed-back request was reported to the traffic sink if it succeeded.
  size_t reap(std::span<IoRequest*> out, std::chrono::milliseconds timeout);

  // Makes a reap() that waits now, or the next one, return early.
  void wake();

  size_t in_flight() const { return in_flight_; }  // requests taken and not handed back
  // Transfers that the backend has handed back so far. Any thread.
  uint64_t transfers_done() const { return transfers_done_.load(std::memory_order_relaxed); }
  // The IoError of a disk that has not answered for `seconds`: names the transfer that has been
  // under way for longest, and what it is for. Null when there is none. Owner thread.
  std::exception_ptr overdue(double seconds) const;
  // That transfer's number, from 1, or 0 when there is none. Owner thread.
  struct Oldest {
    uint64_t number = 0;
    bool flushes = false;
  };
  Oldest oldest() const;
  std::string name() const { return backend_->name(); }

 private:
  struct Slot;  // one transfer under way, or waiting to be tried again
  const Slot* oldest_slot() const;

  // Linked through IoRequest::next.
  struct RequestList {
    IoRequest* head = nullptr;
    IoRequest* tail = nullptr;
    void push(IoRequest& request);
    IoRequest* pop();
  };

  void start_waiting();
  void start_next_transfer(IoRequest& request);
  void submit_slot(uint32_t index);
  void collect(int64_t deadline_ns);
  void finish_transfer(const Completion& completion);
  void advance(uint32_t index, uint32_t moved_bytes);
  void try_again(uint32_t index, int error_number);
  void start_due_retries();
  void fail(uint32_t index, int error_number);
  void release(uint32_t index);
  void finish_if_done(IoRequest& request);

  const std::unique_ptr<IoBackend> backend_;
  const Options options_;
  TrafficSink& traffic_;
  std::vector<Slot> slots_;  // a transfer's cookie is its index here
  std::vector<uint32_t> free_slots_;
  std::vector<uint32_t> retries_;  // slots that wait for their retry_at_ns
  std::vector<Completion> completions_;
  RequestList waiting_;   // requests with bytes not yet started, in order
  RequestList finished_;  // not yet handed back
  size_t in_flight_ = 0;
  uint64_t transfers_begun_ = 0;
  std::atomic<uint64_t> transfers_done_ = 0;  // written by the owner
  std::atomic<bool> woken_ = false;
};

}  // namespace strata::io
