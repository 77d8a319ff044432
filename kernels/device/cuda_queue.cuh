// A queue on a CUDA stream. Only for files compiled with the toolkit.
//
// Point p is the p-th operation on a ring of slots, each with a CUDA event recorded behind it; a
// slot is used again once its event has passed, which is also the queue's back-pressure. Host
// functions mark the time before and after copies and waits, because nothing else in a stream may
// call the traffic sink.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "kernels/device/cuda_gate.cuh"
#include "kernels/device/device.h"
#include "kernels/device/queue_fault.h"

namespace strata {

class CudaQueue final : public Queue {
 public:
  // `ordinal` is the calling thread's current CUDA device. Throws DeviceError. `traffic` must
  // outlive the queue.
  CudaQueue(const QueueOptions& options, int ordinal, TrafficSink& traffic);
  // The stream runs empty first.
  ~CudaQueue() override;
  CudaQueue(const CudaQueue&) = delete;
  CudaQueue& operator=(const CudaQueue&) = delete;

  void wait(const Event& event, const TrafficTag& tag) override;
  void run(HostTask task) override;
  void copy(void* dst, const void* src, size_t bytes, CopyDirection direction,
            const TrafficTag& tag) override;
  void fill_zero(void* dst, size_t bytes) override;
  QueueStanding standing() const override;
  void abandon(std::exception_ptr failure) noexcept override;
  bool failed() const override { return fault_.happened(); }
  void finish() noexcept override;
  void* native_handle() const override { return stream_.get(); }
  const char* name() const override { return name_; }

 protected:
  uint64_t record_point() override;
  bool point_reached(uint64_t point) const override;
  void wait_for_point(uint64_t point) const override;

 private:
  struct DestroyStream {
    void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
  };
  struct DestroyEvent {
    void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
  };
  struct Slot {
    CudaQueue* queue = nullptr;
    std::unique_ptr<CUevent_st, DestroyEvent> event;
    HostTask task;
    uint64_t point = 0;
    TrafficTag work;
    bool waits = false;
    int users = 0;  // threads that keep the slot as it is; protected by mutex_
  };
  class EventUse;

  static void CUDART_CB run_slot(void* slot) noexcept;

  void enqueue(HostTask task, const TrafficTag& work, bool waits = false);
  void select_device() const;
  Slot& next_slot(const TrafficTag& work);
  uint64_t finish_slot(Slot& slot);
  void await_point(uint64_t point) const;
  void check(cudaError_t status, const char* doing) const;
  bool passed_or_failed(const Event& event);
  void mark();
  void wait_for_stream(const CudaQueue& other, uint64_t point);
  void report_wait(const TrafficTag& tag);

  const char* const name_;
  const int ordinal_;
  TrafficSink& traffic_;
  const std::unique_ptr<Slot[]> slots_;  // kQueueDepth of them; before stream_, which uses them
  std::unique_ptr<CUstream_st, DestroyStream> stream_;
  mutable QueueFault fault_;
  CudaGate gate_;
  int64_t mark_ns_ = 0;  // touched by this stream's host functions only, which run in order

  std::atomic<uint64_t> issued_ = 0;  // the last point; written by the enqueueing thread
  std::atomic<bool> abandoned_ = false;

  mutable std::mutex mutex_;
  mutable std::condition_variable event_unused_;
  mutable uint64_t passed_ = 0;  // the last point known to have passed; protected by mutex_
};

}  // namespace strata
