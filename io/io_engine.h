// Requests in, checked byte counts out.
//
// IoEngine cuts requests into transfers of at most `block_bytes`, keeps up to the backend's depth
// of them under way, resumes short transfers at an aligned offset, retries EINTR and EAGAIN, and
// completes a request once every byte is accounted for or one error is known *and* none of its
// transfers still touches the buffer. A read past the end of the file is an IoError, never a short
// count.
//
// Threads: one owner thread calls submit() and reap(); wake() is for any thread. The owner of an
// IoRequest is the caller; the engine keeps a pointer from submit() until reap() hands it back.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "io/block_file.h"
#include "io/io_backend.h"
#include "strata/traffic.h"

namespace strata::io {

struct IoRequest {
  // Set by the caller.
  Op op = Op::read;
  const BlockFile* file = nullptr;
  uint64_t offset = 0;        // multiple of file->offset_alignment()
  std::byte* data = nullptr;  // aligned to file->memory_alignment()
  uint64_t bytes = 0;         // multiple of file->offset_alignment(); 0 for flush
  TrafficTag tag;
  void* user = nullptr;

  // Set by the engine before reap() hands the request back.
  int error = 0;              // errno of the first failure; 0 and !ok(): unexpected end of file
  uint64_t error_offset = 0;  // where in the file it happened
  uint64_t done_bytes = 0;    // == bytes exactly when ok()
  bool ok() const { return error == 0 && done_bytes == bytes; }
  // The failure as an exception naming path, offset and errno.
  void throw_if_failed() const;

  // The engine's own, while under way.
  uint64_t next_offset = 0;
  uint32_t transfers_in_flight = 0;
  int64_t begin_ns = 0;
  IoRequest* next = nullptr;
};

class IoEngine {
 public:
  struct Options {
    uint32_t block_bytes = 1 << 20;
  };
  // `traffic` must outlive the engine.
  IoEngine(std::unique_ptr<IoBackend> backend, const Options& options, TrafficSink& traffic);
  ~IoEngine();  // no request may be under way
  IoEngine(const IoEngine&) = delete;
  IoEngine& operator=(const IoEngine&) = delete;

  // Takes the request. Requests start in order of submission and complete in any order. Throws
  // IoError for misaligned or out-of-file ranges before anything is transferred.
  void submit(IoRequest& request);

  // Hands back finished requests, waiting up to `timeout` for the first (negative: without limit)
  // or until wake(). Each handed-back request was reported to the traffic sink if it succeeded.
  size_t reap(std::span<IoRequest*> out, std::chrono::milliseconds timeout);

  void wake();

  size_t in_flight() const { return in_flight_; }  // requests taken and not handed back
  std::string name() const;

 private:
  struct Slot;  // one transfer under way

  void pump_transfers();
  void start_transfer(IoRequest& request, uint64_t offset, std::byte* data, uint32_t bytes);
  void finish_transfer(const Completion& completion);

  std::unique_ptr<IoBackend> backend_;
  const Options options_;
  TrafficSink& traffic_;
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_slots_;
  IoRequest* waiting_head_ = nullptr;  // requests with bytes not yet started, in order
  IoRequest* waiting_tail_ = nullptr;
  std::vector<IoRequest*> finished_;
  size_t in_flight_ = 0;
};

}  // namespace strata::io
