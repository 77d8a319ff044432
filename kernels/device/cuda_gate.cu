#include <atomic>

#include "kernels/device/cuda_error.cuh"
#include "kernels/device/cuda_gate.cuh"
#include "kernels/device/host_device.h"
#include "strata/error.h"

namespace strata {
namespace {

constexpr char kLookUp[] = "looking up cuStreamWaitValue32 in the driver";

PFN_cuStreamWaitValue32_v11070 find_stream_wait_value() {
  // From the driver at run time: linking to it would keep the binary from starting without one.
  constexpr unsigned int kVersion = 11070;
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  check_cuda(cudaGetDriverEntryPointByVersion("cuStreamWaitValue32", &function, kVersion,
                                              cudaEnableDefault, &result),
             kLookUp);
  if (result != cudaDriverEntryPointSuccess)
    throw DeviceError(std::string(kLookUp) + ": not there");
  return reinterpret_cast<PFN_cuStreamWaitValue32_v11070>(function);
}

}  // namespace

CudaGate::CudaGate(TrafficSink& traffic) : stream_wait_value_(find_stream_wait_value()) {
  void* word = nullptr;
  check_cuda(cudaHostAlloc(&word, sizeof(uint32_t), cudaHostAllocPortable | cudaHostAllocMapped),
             "allocating a gate's word");
  word_.reset(new (word) uint32_t{0});
  void* address = nullptr;
  check_cuda(cudaHostGetDevicePointer(&address, word, 0), "mapping a gate's word");
  device_address_ = reinterpret_cast<CUdeviceptr>(address);
  opener_ = make_host_queue({.name = "cuda gate"}, {}, traffic);
}

uint64_t CudaGate::hold(cudaStream_t stream, const Event& event) {
  const uint64_t number = ++gates_;
  // The comparison is cyclic in 32 bits, so that the low half of the number is enough.
  const CUresult result = stream_wait_value_(stream, device_address_, static_cast<uint32_t>(number),
                                             CU_STREAM_WAIT_VALUE_GEQ);
  if (result != CUDA_SUCCESS) {
    throw DeviceError("holding a stream for work on the host: CUDA driver error " +
                      std::to_string(result));
  }
  opener_->run([this, event, number] { open_after(event, number); });
  return number;
}

void CudaGate::open_after(const Event& event, uint64_t number) {
  try {
    event.wait();
  } catch (...) {
    failure_.set(number, std::current_exception());
  }
  // Releases what the host wrote before the event to the stream behind the gate. Opens after a
  // failure too: what is held would never end otherwise.
  std::atomic_ref<uint32_t>(*word_).store(static_cast<uint32_t>(number), std::memory_order_release);
}

}  // namespace strata
