// Workers with blocking system calls, for where io_uring is forbidden.
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include "io/io_backend.h"
#include "strata/error.h"

namespace strata::io {
namespace {

// First in, first out, of fixed capacity, which the caller respects.
template <typename T>
class Fifo {
 public:
  explicit Fifo(size_t capacity) : items_(capacity) {}

  bool empty() const { return size_ == 0; }
  void push(const T& item) { items_[(head_ + size_++) % items_.size()] = item; }
  T pop() {
    const T item = items_[head_];
    head_ = (head_ + 1) % items_.size();
    --size_;
    return item;
  }

 private:
  std::vector<T> items_;
  size_t head_ = 0;
  size_t size_ = 0;
};

int32_t perform(const Transfer& transfer) {
  const auto offset = static_cast<off_t>(transfer.offset);
  ssize_t result = -1;
  switch (transfer.op) {
    case Op::read:
      result = ::pread(transfer.fd, transfer.data, transfer.bytes, offset);
      break;
    case Op::write:
      result = ::pwrite(transfer.fd, transfer.data, transfer.bytes, offset);
      break;
    case Op::flush:
      result = ::fdatasync(transfer.fd);
      break;
  }
  return static_cast<int32_t>(result < 0 ? -errno : result);
}

class ThreadBackend final : public IoBackend {
 public:
  ThreadBackend(uint32_t max_in_flight, int threads)
      : max_in_flight_(max_in_flight), todo_(max_in_flight), done_(max_in_flight) {
    workers_.reserve(static_cast<size_t>(threads));
    try {
      for (int i = 0; i < threads; ++i) workers_.emplace_back([this] { work(); });
    } catch (...) {
      stop_workers();
      throw;
    }
  }

  ~ThreadBackend() override { stop_workers(); }

  void submit(const Transfer& transfer) override {
    {
      const std::lock_guard lock(mutex_);
      if (in_flight_ == max_in_flight_) throw std::logic_error("more transfers than the depth");
      ++in_flight_;
      todo_.push(transfer);
    }
    work_arrived_.notify_one();
  }

  size_t reap(std::span<Completion> out, std::chrono::milliseconds timeout) override {
    std::unique_lock lock(mutex_);
    const auto ready = [this] { return !done_.empty() || woken_; };
    if (timeout.count() < 0) {
      reap_ready_.wait(lock, ready);
    } else {
      reap_ready_.wait_for(lock, timeout, ready);
    }
    woken_ = false;
    size_t count = 0;
    while (count < out.size() && !done_.empty()) out[count++] = done_.pop();
    in_flight_ -= static_cast<uint32_t>(count);
    return count;
  }

  void wake() override {
    {
      const std::lock_guard lock(mutex_);
      woken_ = true;
    }
    reap_ready_.notify_one();
  }

  uint32_t max_in_flight() const override { return max_in_flight_; }
  std::string name() const override { return "threads"; }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      work_arrived_.wait(lock, [this] { return !todo_.empty() || stopping_; });
      if (todo_.empty()) return;
      const Transfer transfer = todo_.pop();
      lock.unlock();
      const Completion completion = {transfer.cookie, perform(transfer)};
      lock.lock();
      done_.push(completion);
      reap_ready_.notify_one();
    }
  }

  // Workers leave once nothing is left to do.
  void stop_workers() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    work_arrived_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  const uint32_t max_in_flight_;
  std::vector<std::thread> workers_;

  std::mutex mutex_;  // protects all below
  std::condition_variable work_arrived_;
  std::condition_variable reap_ready_;
  Fifo<Transfer> todo_;
  Fifo<Completion> done_;
  uint32_t in_flight_ = 0;
  bool woken_ = false;
  bool stopping_ = false;
};

}  // namespace

std::unique_ptr<IoBackend> make_thread_backend(uint32_t max_in_flight, int threads) {
  if (max_in_flight < 1 || threads < 1) {
    throw ConfigError(
        fmt::format("I/O threads need a depth and a count of at least 1, not {} and {}",
                    max_in_flight, threads));
  }
  return std::make_unique<ThreadBackend>(max_in_flight, threads);
}

}  // namespace strata::io
