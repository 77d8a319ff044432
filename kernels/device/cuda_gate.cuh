// Holds a CUDA stream back until something on the host has happened. Only for files compiled with
// the toolkit.
//
// A host function that blocks would be simpler and is forbidden: CUDA may run the host functions of
// all streams on one thread, so one that waits for work behind another stream's host function waits
// for ever. Here the stream waits for a word of pinned memory, and a thread of our own sets it.
// Streams beyond CUDA_DEVICE_MAX_CONNECTIONS (8 unless set) share a line to the device with others
// and can be held by their gates: a process keeps to fewer queues than that.
#pragma once

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "kernels/device/device.h"
#include "kernels/device/queue_fault.h"

namespace strata {

// Used by the thread that enqueues on the stream, but for throw_if_failed().
class CudaGate {
 public:
  // On the current CUDA device. Throws DeviceError.
  explicit CudaGate(TrafficSink& traffic);
  CudaGate(const CudaGate&) = delete;
  CudaGate& operator=(const CudaGate&) = delete;

  // Later work on `stream` starts after `event`, failed or not. Returns the gate's number.
  uint64_t hold(cudaStream_t stream, const Event& event);

  // Throws what the event of gate `number` threw, once that gate has opened. Any thread.
  void throw_if_failed(uint64_t number) const { failure_.throw_if_behind(number); }

 private:
  struct FreePinned {
    void operator()(uint32_t* word) const { cudaFreeHost(word); }
  };

  void open_after(const Event& event, uint64_t number);

  PFN_cuStreamWaitValue32_v11070 stream_wait_value_ = nullptr;
  std::unique_ptr<uint32_t, FreePinned> word_;  // the number of the last open gate, its low half
  CUdeviceptr device_address_ = 0;              // of word_
  uint64_t gates_ = 0;
  QueueFault failure_;
  std::unique_ptr<Queue> opener_;  // opens gates in order; last, so that it ends first
};

}  // namespace strata
