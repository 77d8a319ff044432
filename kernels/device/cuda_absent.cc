// Stands in for the CUDA device where the toolkit was absent at build time.
#include "kernels/device/backends.h"
#include "kernels/device/cuda_device.h"
#include "strata/error.h"

namespace strata {

std::string cuda_backend() { return {}; }

std::string cuda_unavailable_reason() { return "built without CUDA"; }

int cuda_device_count() { return 0; }

std::unique_ptr<Device> make_cuda_device(const CudaDeviceOptions&, TrafficSink&) {
  throw DeviceError("CUDA cannot be used: " + cuda_unavailable_reason());
}

}  // namespace strata
