// One thread owns the I/O engine and reaps it; everybody else holds tickets.
//
// Requests reach the pump through a lock-free queue from any thread. They live in a fixed pool, so
// the steady state allocates nothing, and an exhausted pool is back-pressure: submit() waits for a
// request to come back. A request's buffer and file must stay until its ticket is done.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
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

  // Any thread but the pump's own.
  Ticket submit(const IoCommand& command);

  // Without a ticket: `continuation` runs on the pump's thread once the request is done.
  void submit(const IoCommand& command, Continuation continuation);

  // Blocks until no request is under way.
  void quiesce();

  // With what is attached.
  const std::string& engine_name() const { return engine_name_; }

 private:
  friend class Ticket;
  using Node = Ticket::Node;

  Node* prepare(const IoCommand& command, Continuation continuation, int holders);
  Node* acquire();
  void recycle(Node* node) noexcept;
  void push(Node* node);
  void attach_resources();
  void take_submissions();
  void complete(Node* node) noexcept;
  void run();
  void serve();
  void fail_all(std::exception_ptr failure) noexcept;

  // Constant after construction.
  const std::unique_ptr<io::IoEngine> engine_;
  std::vector<std::unique_ptr<Node>> nodes_;

  std::string engine_name_;                                  // changes in attach() only
  std::atomic<const io::IoResources*> attaching_ = nullptr;  // until the pump has done it
  std::atomic<Node*> submitted_ = nullptr;  // a stack; the pump takes it whole and reverses it
  std::atomic<bool> stopping_ = false;
  std::exception_ptr engine_failure_;  // the pump's own

  std::mutex mutex_;  // protects what follows
  std::condition_variable changed_;
  Node* free_ = nullptr;
  size_t under_way_ = 0;

  std::thread thread_;
};

}  // namespace strata::offload
