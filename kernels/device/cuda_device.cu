#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "kernels/device/backends.h"
#include "kernels/device/cuda_device.h"
#include "kernels/device/cuda_error.cuh"
#include "kernels/device/cuda_queue.cuh"
#include "kernels/device/memory_meter.h"
#include "strata/error.h"

namespace strata {
namespace {

// cudaMalloc packs small blocks at 256 bytes; whole pages of the device begin on a page.
constexpr size_t kDevicePageBytes = size_t{2} << 20;
constexpr size_t kAlignmentBytes = 4096;

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

void check_alignment(const void* data, const char* what) {
  if (reinterpret_cast<uintptr_t>(data) % kAlignmentBytes == 0) return;
  throw DeviceError(std::string(what) + " is not aligned to 4096 bytes on this driver");
}

struct FreeDevice {
  void operator()(void* data) const { cudaFree(data); }
};
struct FreePinned {
  void operator()(void* data) const { cudaFreeHost(data); }
};

// What a budget that nobody set leaves to kernels' code and stacks, cuBLAS and NCCL.
constexpr size_t kLibrariesBytes = size_t{1} << 30;

// More streams run at a time than the 8 that CUDA gives lines of their own: else one that waits
// holds others back. Read when the process first uses CUDA; a value that somebody set stays.
void ask_for_connections() { setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", /*overwrite=*/0); }

size_t free_bytes(int ordinal) {
  check_cuda(cudaSetDevice(ordinal), "selecting a CUDA device");
  size_t free = 0;
  size_t total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "asking for free device memory");
  return free > kLibrariesBytes ? free - kLibrariesBytes : 0;
}

class CudaDevice final : public Device {
 public:
  CudaDevice(const CudaDeviceOptions& options, TrafficSink& traffic)
      : ordinal_(options.ordinal),
        traffic_(traffic),
        meter_(options.cap_bytes != 0 ? options.cap_bytes : free_bytes(options.ordinal)) {
    select();
  }

  DeviceKind kind() const override { return DeviceKind::cuda; }

  std::string description() const override {
    cudaDeviceProp properties{};
    check_cuda(cudaGetDeviceProperties(&properties, ordinal_), "reading a device's properties");
    char size[32];
    std::snprintf(size, sizeof(size), ", %.1f GiB",
                  static_cast<double>(properties.totalGlobalMem) / (1 << 30));
    return std::string(properties.name) + size;
  }

  std::unique_ptr<Queue> create_queue(const QueueOptions& queue) override {
    select();
    return std::make_unique<CudaQueue>(queue, ordinal_, traffic_);
  }

  MemoryBlock allocate(size_t bytes) override {
    if (bytes == 0) return {};
    meter_.reserve(bytes);
    try {
      return MemoryBlock(allocate_pages(bytes), bytes, this, &release);
    } catch (...) {
      meter_.release(bytes);
      throw;
    }
  }

  MemoryBlock allocate_pinned(size_t bytes) override {
    if (bytes == 0) return {};
    select();
    void* data = nullptr;
    check_cuda(cudaHostAlloc(&data, bytes, cudaHostAllocPortable), "allocating pinned memory");
    std::unique_ptr<void, FreePinned> block(data);
    check_alignment(data, "pinned memory");
    std::memset(data, 0, bytes);
    return MemoryBlock(block.release(), bytes, nullptr, &release_pinned);
  }

  size_t cap_bytes() const override { return meter_.cap_bytes(); }
  size_t used_bytes() const override { return meter_.used_bytes(); }
  size_t peak_bytes() const override { return meter_.peak_bytes(); }

 private:
  // CUDA's current device is a thread's, and the device is used from many.
  void select() const { check_cuda(cudaSetDevice(ordinal_), "selecting a CUDA device"); }

  void* allocate_pages(size_t bytes) {
    select();
    // Rounding up what no device has would overflow; CUDA refuses it as it is.
    const size_t rest = bytes % kDevicePageBytes;
    const bool round = rest != 0 && bytes < std::numeric_limits<ptrdiff_t>::max();
    void* data = nullptr;
    check_cuda(cudaMalloc(&data, round ? bytes - rest + kDevicePageBytes : bytes),
               "allocating device memory");
    std::unique_ptr<void, FreeDevice> block(data);
    check_alignment(data, "device memory");
    check_cuda(cudaMemset(data, 0, bytes), "clearing device memory");
    // Queues do not wait for the default stream.
    check_cuda(cudaStreamSynchronize(nullptr), "clearing device memory");
    return block.release();
  }

  static void release(void* owner, void* data, size_t bytes) noexcept {
    cudaFree(data);
    static_cast<CudaDevice*>(owner)->meter_.release(bytes);
  }
  static void release_pinned(void*, void* data, size_t) noexcept { cudaFreeHost(data); }

  const int ordinal_;
  TrafficSink& traffic_;
  MemoryMeter meter_;
};

}  // namespace

std::string cuda_backend() { return "CUDA " + version_text(CUDART_VERSION); }

std::string cuda_unavailable_reason() {
  ask_for_connections();
  int driver_version = 0;
  const cudaError_t asked = cudaDriverGetVersion(&driver_version);
  if (asked != cudaSuccess) return cuda_error_text(asked, "asking for the NVIDIA driver");
  if (driver_version == 0) return "no NVIDIA driver is installed";
  int devices = 0;
  const cudaError_t counted = cudaGetDeviceCount(&devices);
  if (counted == cudaErrorNoDevice || (counted == cudaSuccess && devices == 0)) {
    return "no CUDA device is visible to this process";
  }
  if (counted == cudaErrorInsufficientDriver) {
    return "the NVIDIA driver knows CUDA " + version_text(driver_version) +
           " and Strata was built with " + cuda_backend();
  }
  if (counted != cudaSuccess) return cuda_error_text(counted, "counting CUDA devices");
  return {};
}

int cuda_device_count() {
  int devices = 0;
  return cuda_unavailable_reason().empty() && cudaGetDeviceCount(&devices) == cudaSuccess ? devices
                                                                                          : 0;
}

std::unique_ptr<Device> make_cuda_device(const CudaDeviceOptions& options, TrafficSink& traffic) {
  const std::string reason = cuda_unavailable_reason();
  if (!reason.empty()) throw DeviceError("CUDA cannot be used: " + reason);
  return std::make_unique<CudaDevice>(options, traffic);
}

}  // namespace strata
