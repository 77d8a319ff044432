// Transfers between files and pinned memory as work on a queue, in order with compute and copies by
// events, so that nobody has to wait for the disk to enqueue what follows.
//
// The memory is one ring. A transfer's part of it is free again when whoever used it last is done,
// and the next claim of it waits for that: the ring's size bounds how far reads run ahead of their
// use, and writes behind. Driver thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "kernels/device/device.h"
#include "offload/pump.h"

namespace strata::offload {

class FileQueue {
 public:
  // `queue` is a host queue of one thread. `ring` is aligned to 4096 bytes, and larger than any
  // claim. `pump` and `ring` must outlive this.
  FileQueue(Pump& pump, std::unique_ptr<Queue> queue, std::span<std::byte> ring);

  // Memory for a transfer, aligned to 4096 bytes: later work on `first` finds it unused, when
  // `first` is the queue of all claims, or else starts behind those before it.
  std::byte* claim(uint64_t bytes, Queue& first);
  // What was claimed last is in use until `done`.
  void release(const Event& done);

  // Enqueues a transfer; what fails of it poisons the queue.
  void transfer(const IoCommand& command);
  // Of transfers.
  Queue& queue() { return *queue_; }

 private:
  struct Part {
    uint64_t begin = 0, end = 0;
    Event done;
  };
  static constexpr size_t kParts = 64;

  Part& part(uint64_t number) { return parts_[number % kParts]; }

  Pump& pump_;
  const std::unique_ptr<Queue> queue_;
  const std::span<std::byte> ring_;
  // Parts are numbered as they are claimed; [oldest_, next_) may be in use.
  std::array<Part, kParts> parts_;
  uint64_t oldest_ = 0, next_ = 0;
  uint64_t end_ = 0;  // of the newest part
};

}  // namespace strata::offload
