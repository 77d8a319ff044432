// One thread owns the I/O engine and reaps it; everybody else holds tickets.
//
// Requests reach the pump through a lock-free queue from any thread. They live in a fixed pool, so
// the steady state allocates nothing, and an exhausted pool is back-pressure: submit() waits for a
// request to come back. A request's buffer and file must stay until its ticket is done, and where
// the pump was abandoned until quiesce() has returned.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "io/io_engine.h"
#include "strata/traffic.h"

namespace strata::offload {

struct IoCommand {
  io::Op op = io::Op::read;
  const io::FileSpace* file = nullptr;
  uint64_t offset = 0;        // bytes, aligned to the file
  std::byte* data = nullptr;  // aligned to the file
  uint64_t bytes = 0;
  TrafficTag tag;
};

// What follows a request: `run(context, failure)`, short and never blocking; `failure` is null when
// the request succeeded.
struct Continuation {
  void (*run)(void* context, std::exception_ptr failure) noexcept = nullptr;
  void* context = nullptr;
};

class Pump;

// A hold on one request. Moves; dropping it does not cancel the request.
class Ticket {
 public:
  Ticket() = default;
  Ticket(Ticket&& other) noexcept;
  Ticket& operator=(Ticket&& other) noexcept;
  ~Ticket();

  // Blocks until the request is done; throws IoError if it failed. Any thread.
  void wait();

 private:
  friend class Pump;
  struct Node;
  explicit Ticket(Node* node) : node_(node) {}
  void release() noexcept;

  Node* node_ = nullptr;
};

class Pump {
 public:
  // `capacity` requests at most are under way or held by a ticket.
  Pump(std::unique_ptr<io::IoEngine> engine, size_t capacity);
  // Waits for all requests under way. No ticket may outlive the pump.
  ~Pump();
  Pump(const Pump&) = delete;
  Pump& operator=(const Pump&) = delete;

  // As IoBackend::attach, on the pump's thread; returns when it is done. No request is under way.
  void attach(const io::IoResources& resources);

  // Any thread but the pump's own. Throws why the pump was abandoned instead of waiting for room.
  Ticket submit(const IoCommand& command);

  // Without a ticket: `continuation` runs on the pump's thread once the request is done, or on the
  // caller's where the pump was abandoned and has no room.
  void submit(const IoCommand& command, Continuation continuation);

  // Blocks until no request is under way, those of an abandoned pump too.
  void quiesce();

  // For whoever watches over the pump, any thread.
  struct Standing {
    size_t under_way = 0;         // requests
    uint64_t transfers_done = 0;  // since the start
    // The transfer that has been under way the longest, as the pump's thread found it when it was
    // asked last; 0: none.
    uint64_t oldest = 0;
    bool oldest_flushes = false;
  };
  // Any thread. Asks the pump's thread for the next time.
  Standing standing();
  // As IoEngine::overdue(), by the pump's thread; null also where that does not answer in time.
  std::exception_ptr overdue(double seconds, std::chrono::milliseconds patience);
  // Nobody waits any more: what is under way fails with `failure` at once, and so does what comes
  // later. The pump goes on to take what the disk still hands back. Any thread.
  void abandon(std::exception_ptr failure);

  // With what is attached.
  const std::string& engine_name() const { return engine_name_; }

 private:
  friend class Ticket;
  using Node = Ticket::Node;

  Node* prepare(const IoCommand& command, Continuation continuation, int holders);
  Node* acquire();
  void recycle(Node* node) noexcept;
  std::exception_ptr why_abandoned();
  void push(Node* node);
  void attach_resources();
  void take_submissions();
  void answer();
  void tell(Node* node) noexcept;
  void retire(Node* node) noexcept;
  void complete(Node* node) noexcept;
  void run();
  void serve();
  void take_back(io::IoRequest& request);
  void tell_all() noexcept;
  void fail_all(std::exception_ptr failure) noexcept;

  // Constant after construction.
  const std::unique_ptr<io::IoEngine> engine_;
  std::vector<std::unique_ptr<Node>> nodes_;

  std::string engine_name_;                                  // changes in attach() only
  std::atomic<const io::IoResources*> attaching_ = nullptr;  // until the pump has done it
  std::atomic<Node*> submitted_ = nullptr;  // a stack; the pump takes it whole and reverses it
  std::atomic<bool> stopping_ = false;
  std::atomic<bool> asked_ = false;    // something: by whoever watches over it
  std::exception_ptr engine_failure_;  // the pump's own: why nothing more is submitted
  bool engine_broken_ = false;         // likewise; false: what it has comes back some day

  std::mutex mutex_;  // protects what follows
  std::condition_variable changed_;
  Node* free_ = nullptr;
  size_t under_way_ = 0;
  io::IoEngine::Oldest oldest_;
  double overdue_seconds_ = 0;    // what overdue() asks; 0: nothing, or it has been answered
  std::exception_ptr overdue_;    // the answer
  std::exception_ptr abandoned_;  // why

  std::thread thread_;
};

}  // namespace strata::offload
