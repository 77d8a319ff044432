#include "offload/pump.h"

#include <array>
#include <chrono>
#include <utility>

namespace strata::offload {

struct Ticket::Node {
  Pump* pump = nullptr;
  io::IoRequest request;
  Continuation continuation;
  std::exception_ptr failure;  // written before `done`
  std::atomic<bool> done = false;
  std::atomic<int> holders = 0;  // the pump, and the ticket if there is one
  bool in_engine = false;        // the pump thread's
  bool told = false;             // likewise: its holder has been told of a failure ahead of time
  Node* next = nullptr;          // in the free list or the submission stack
};

Ticket::Ticket(Ticket&& other) noexcept : node_(std::exchange(other.node_, nullptr)) {}

Ticket& Ticket::operator=(Ticket&& other) noexcept {
  if (this != &other) {
    release();
    node_ = std::exchange(other.node_, nullptr);
  }
  return *this;
}

Ticket::~Ticket() { release(); }

void Ticket::release() noexcept {
  if (Node* node = std::exchange(node_, nullptr)) node->pump->recycle(node);
}

void Ticket::wait() {
  if (node_ == nullptr) return;
  node_->done.wait(false, std::memory_order_acquire);
  if (node_->failure != nullptr) std::rethrow_exception(node_->failure);
}

Pump::Pump(std::unique_ptr<io::IoEngine> engine, size_t capacity)
    : engine_(std::move(engine)), engine_name_(engine_->name()) {
  nodes_.reserve(capacity);
  for (size_t i = 0; i < capacity; ++i) {
    nodes_.push_back(std::make_unique<Node>());
    nodes_.back()->pump = this;
    nodes_.back()->next = std::exchange(free_, nodes_.back().get());
  }
  thread_ = std::thread([this] { run(); });
}

Pump::~Pump() {
  stopping_.store(true, std::memory_order_release);
  engine_->wake();
  thread_.join();
}

void Pump::attach(const io::IoResources& resources) {
  attaching_.store(&resources, std::memory_order_release);
  engine_->wake();
  attaching_.wait(&resources, std::memory_order_acquire);
}

Ticket Pump::submit(const IoCommand& command) {
  Node* node = prepare(command, {}, /*holders=*/2);
  if (node == nullptr) std::rethrow_exception(why_abandoned());
  push(node);
  return Ticket(node);
}

void Pump::submit(const IoCommand& command, Continuation continuation) {
  if (Node* node = prepare(command, continuation, /*holders=*/1)) {
    push(node);
  } else {
    continuation.run(continuation.context, why_abandoned());
  }
}

Pump::Node* Pump::prepare(const IoCommand& command, Continuation continuation, int holders) {
  Node* node = acquire();
  if (node == nullptr) return nullptr;
  node->request = io::IoRequest{};
  node->request.op = command.op;
  node->request.file = command.file;
  node->request.offset = command.offset;
  node->request.data = command.data;
  node->request.bytes = command.bytes;
  node->request.tag = command.tag;
  node->request.user = node;
  node->continuation = continuation;
  node->failure = nullptr;
  node->told = false;
  node->done.store(false, std::memory_order_relaxed);
  node->holders.store(holders, std::memory_order_relaxed);
  return node;
}

void Pump::quiesce() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return under_way_ == 0; });
}

// Null where the pump is abandoned and has no room.
Pump::Node* Pump::acquire() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return free_ != nullptr || abandoned_ != nullptr; });
  Node* node = free_;
  if (node == nullptr) return nullptr;
  free_ = node->next;
  ++under_way_;
  return node;
}

void Pump::recycle(Node* node) noexcept {
  if (node->holders.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
  const std::lock_guard lock(mutex_);
  node->next = std::exchange(free_, node);
  changed_.notify_all();
}

void Pump::push(Node* node) {
  Node* head = submitted_.load(std::memory_order_relaxed);
  do {
    node->next = head;
  } while (!submitted_.compare_exchange_weak(head, node, std::memory_order_release,
                                             std::memory_order_relaxed));
  // Whoever finds the stack not empty knows that the pump has been woken for it already.
  if (head == nullptr) engine_->wake();
}

void Pump::attach_resources() {
  const io::IoResources* resources = attaching_.load(std::memory_order_acquire);
  if (resources == nullptr) return;
  if (engine_failure_ == nullptr) {
    engine_->attach(*resources);
    engine_name_ = engine_->name();
  }
  attaching_.store(nullptr, std::memory_order_release);
  attaching_.notify_all();
}

void Pump::take_submissions() {
  Node* stack = submitted_.exchange(nullptr, std::memory_order_acquire);
  Node* in_order = nullptr;
  while (stack != nullptr) {
    Node* next = stack->next;
    stack->next = std::exchange(in_order, stack);
    stack = next;
  }
  while (in_order != nullptr) {
    Node* node = std::exchange(in_order, in_order->next);
    try {
      if (engine_failure_ != nullptr) std::rethrow_exception(engine_failure_);
      engine_->submit(node->request);
      node->in_engine = true;
    } catch (...) {
      node->failure = std::current_exception();
      complete(node);
    }
  }
}

void Pump::complete(Node* node) noexcept {
  tell(node);
  retire(node);
}

void Pump::tell(Node* node) noexcept {
  const Continuation continuation = node->continuation;
  const std::exception_ptr failure = node->failure;
  node->done.store(true, std::memory_order_release);
  node->done.notify_all();
  if (continuation.run != nullptr) continuation.run(continuation.context, failure);
}

void Pump::retire(Node* node) noexcept {
  recycle(node);
  const std::lock_guard lock(mutex_);
  if (--under_way_ == 0) changed_.notify_all();
}

void Pump::run() {
  while (true) {
    try {
      serve();
      return;
    } catch (...) {
      fail_all(std::current_exception());
    }
  }
}

// The engine itself is broken: what it holds does not come back, and nothing more is given to it.
void Pump::fail_all(std::exception_ptr failure) noexcept {
  engine_failure_ = std::move(failure);
  engine_broken_ = true;
  tell_all();
  for (const auto& node : nodes_) {
    if (std::exchange(node->in_engine, false)) retire(node.get());
  }
}

// What the engine has fails for those who wait for it. It stays the engine's.
void Pump::tell_all() noexcept {
  for (const auto& node : nodes_) {
    if (!node->in_engine || std::exchange(node->told, true)) continue;
    node->failure = engine_failure_;
    tell(node.get());
  }
}

Pump::Standing Pump::standing() {
  asked_.store(true, std::memory_order_release);
  engine_->wake();
  const std::lock_guard lock(mutex_);
  return {under_way_, engine_->transfers_done(), oldest_.number, oldest_.flushes};
}

std::exception_ptr Pump::overdue(double seconds, std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  overdue_seconds_ = seconds;
  asked_.store(true, std::memory_order_release);
  engine_->wake();
  changed_.wait_for(lock, patience, [this] { return overdue_seconds_ == 0; });
  return overdue_;
}

void Pump::abandon(std::exception_ptr failure) {
  const std::lock_guard lock(mutex_);
  abandoned_ = std::move(failure);
  asked_.store(true, std::memory_order_release);
  changed_.notify_all();
  engine_->wake();
}

std::exception_ptr Pump::why_abandoned() {
  const std::lock_guard lock(mutex_);
  return abandoned_;
}

// What others ask of this thread.
void Pump::answer() {
  if (!asked_.exchange(false, std::memory_order_acquire)) return;
  take_submissions();  // what was submitted before is under way
  std::exception_ptr abandoned;
  {
    const std::lock_guard lock(mutex_);
    oldest_ = engine_->oldest();
    if (overdue_seconds_ > 0) overdue_ = engine_->overdue(std::exchange(overdue_seconds_, 0));
    abandoned = abandoned_;
    changed_.notify_all();
  }
  if (abandoned == nullptr || engine_failure_ != nullptr) return;
  engine_failure_ = abandoned;
  tell_all();
}

// Until it is time to stop, or the engine fails.
void Pump::serve() {
  std::array<io::IoRequest*, 64> finished;
  while (true) {
    attach_resources();
    answer();
    take_submissions();
    if (stopping_.load(std::memory_order_acquire) &&
        (engine_broken_ || engine_->in_flight() == 0) &&
        submitted_.load(std::memory_order_acquire) == nullptr) {
      return;
    }
    if (engine_broken_) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      continue;
    }
    const size_t count = engine_->reap(finished, std::chrono::milliseconds(-1));
    for (size_t i = 0; i < count; ++i) take_back(*finished[i]);
  }
}

void Pump::take_back(io::IoRequest& request) {
  Node* node = static_cast<Node*>(request.user);
  node->in_engine = false;
  if (node->told) return retire(node);
  try {
    request.throw_if_failed();
  } catch (...) {
    node->failure = std::current_exception();
  }
  complete(node);
}

}  // namespace strata::offload
