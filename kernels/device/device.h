// Devices: what has memory with a hard cap, ordered queues of work, and events.
//
// Two kinds behind one interface: CUDA (streams), and the host standing in for a GPU (a worker
// thread a queue), so that the same overlapping code runs, and is raced by ThreadSanitizer, where
// there is no GPU. A conformance suite (tests/kernels/device/conformance_*_test.cc) runs over every
// kind.
//
// Ownership: queues and memory must be destroyed before their device; events before their queue,
// and a queue only after every queue that waits for one of its events has passed the wait.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/device/cpu_topology.h"
#include "kernels/device/host_task.h"
#include "strata/traffic.h"

namespace strata {

enum class DeviceKind : uint8_t { host, cuda };

class Queue;

// A point in a queue: reached once all work enqueued before Queue::record() is done. A small value;
// copying is free, a default-constructed event is always reached. Any thread may ask or wait.
class Event {
 public:
  Event() = default;

  // Whether the point was reached. Throws what the queue's work threw, if it failed before it.
  bool reached() const;
  // Blocks the calling thread until it is. Throws likewise.
  void wait() const;

  Queue* queue() const { return queue_; }
  uint64_t point() const { return point_; }

 private:
  friend class Queue;
  Event(Queue* queue, uint64_t point) : queue_(queue), point_(point) {}

  Queue* queue_ = nullptr;
  uint64_t point_ = 0;
};

enum class CopyDirection : uint8_t {
  host_to_device,
  device_to_host,
  device_to_device,
  host_to_host,
};

// Where a queue stands, for whoever watches over it.
struct QueueStanding {
  bool under_way = false;  // there is work that has not ended
  bool waits = false;      // and it is a wait for an event
  uint64_t ended = 0;      // operations
  int64_t cpu_ns = 0;      // that the queue's thread has computed for so far; 0 on a device
  TrafficTag work;         // what is under way
};

// How many operations a queue holds before enqueueing another one waits for the oldest.
inline constexpr uint64_t kQueueDepth = 1024;

// An ordered line of work. Enqueueing is for one thread at a time; it does not wait for the work,
// except as back-pressure when kQueueDepth operations are under way. Work that throws poisons the
// queue: later work is skipped, and every event recorded after it throws the same exception, of the
// same type, where it is asked or waited for. Events recorded before it stay good. A queue's
// destructor waits for the work, and drops its failure.
class Queue {
 public:
  virtual ~Queue() = default;

  // A point after everything enqueued so far.
  Event record() { return Event(this, record_point()); }

  // Later work on this queue starts after `event`. A failure behind `event` poisons this queue too.
  // `event` may be of any queue of any device. If this queue stands still for it, the time is
  // reported as Activity::wait with `tag`.
  virtual void wait(const Event& event, const TrafficTag& tag) = 0;

  // Runs `task` (not an empty one) on the host, in queue order, and destroys it right after. On the
  // host device this is how all compute runs, with the queue's thread team in force
  // (thread_team.h). Tasks call nothing that enqueues on a queue.
  virtual void run(HostTask task) = 0;

  // Copies `bytes` in queue order; the two ranges do not overlap. Memory on the host side is pinned
  // memory of the same device. Done copies between host and device are reported to the traffic sink
  // before an event behind them is reached; copies within one of them cross no link and are not.
  virtual void copy(void* dst, const void* src, size_t bytes, CopyDirection direction,
                    const TrafficTag& tag) = 0;

  // Sets `bytes` bytes of device memory to zero, in queue order.
  virtual void fill_zero(void* dst, size_t bytes) = 0;

  // What is enqueued from now on is part of `work`, but for copies and waits, which say so
  // themselves.
  void begin_work(const TrafficTag& work) { work_ = work; }

  // Any thread.
  virtual QueueStanding standing() const = 0;

  // Poisons the queue from the work under way on, which nobody waits for any more: whoever waits or
  // enqueues throws `failure` at once, unless inside a CUDA call. finish() and the destructor still
  // wait for that work, which uses what it was given until it ends. Any thread.
  virtual void abandon(std::exception_ptr failure) noexcept = 0;

  // Whether the queue is known to be poisoned, so that work enqueued from now on would be skipped.
  // Whoever launches on native_handle() asks, and leaves it.
  virtual bool failed() const = 0;

  // Blocks until everything enqueued is done; throws what it threw.
  void synchronize() { record().wait(); }
  // Blocks likewise, of an abandoned queue too, and drops a failure: for destructors, and whoever
  // takes back what the work uses.
  virtual void finish() noexcept = 0;

  // cudaStream_t for people's own kernels; null on the host device.
  virtual void* native_handle() const { return nullptr; }
  virtual const char* name() const = 0;

 protected:
  friend class Event;
  virtual uint64_t record_point() = 0;
  virtual bool point_reached(uint64_t point) const = 0;
  virtual void wait_for_point(uint64_t point) const = 0;

  TrafficTag work_;  // of what is being enqueued
};

inline bool Event::reached() const { return queue_ == nullptr || queue_->point_reached(point_); }
inline void Event::wait() const {
  if (queue_ != nullptr) queue_->wait_for_point(point_);
}

// Owns a block of a device's memory or of pinned host memory; returned when destroyed. Blocks are
// aligned to 4096 bytes, zero-filled, and resident when handed out. No block is empty but a
// default-constructed, a moved-from or a reset one, and one allocated with 0 bytes.
class MemoryBlock {
 public:
  using Release = void (*)(void* owner, void* data, size_t bytes) noexcept;

  MemoryBlock() = default;
  MemoryBlock(void* data, size_t bytes, void* owner, Release release)
      : data_(data), bytes_(bytes), owner_(owner), release_(release) {}
  MemoryBlock(MemoryBlock&& other) noexcept { *this = std::move(other); }
  MemoryBlock& operator=(MemoryBlock&& other) noexcept;
  ~MemoryBlock() { reset(); }

  std::byte* data() const { return static_cast<std::byte*>(data_); }
  size_t bytes() const { return bytes_; }
  void reset() noexcept;

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  void* owner_ = nullptr;
  Release release_ = nullptr;
};

struct QueueOptions {
  const char* name = "queue";  // lane in traces; a literal
  int threads = 1;             // size of the team of host tasks; CUDA's host tasks run alone
  // Where each of them runs; none: wherever the system puts it. Host queues alone.
  std::vector<CpuPlace> places = {};
};

// Thread-safe. Its only client for memory is offload's TierManager.
class Device {
 public:
  virtual ~Device() = default;

  virtual DeviceKind kind() const = 0;
  // One line for people: "host, 2 cores" or "NVIDIA H200, 139.8 GiB".
  virtual std::string description() const = 0;

  // The queue's threads are running when it is returned.
  virtual std::unique_ptr<Queue> create_queue(const QueueOptions& options) = 0;

  // Device memory. Throws OutOfBudget when used + bytes would exceed the cap, DeviceError when the
  // machine has no more.
  virtual MemoryBlock allocate(size_t bytes) = 0;
  // Page-locked host memory that this device copies to and from at full speed. Not capped here.
  virtual MemoryBlock allocate_pinned(size_t bytes) = 0;

  virtual size_t cap_bytes() const = 0;
  virtual size_t used_bytes() const = 0;
  virtual size_t peak_bytes() const = 0;
};

}  // namespace strata
