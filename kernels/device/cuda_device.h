// CUDA as a device. Built against a link-time stub where the toolkit is absent.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "kernels/device/device.h"

namespace strata {

// Empty when a CUDA device can be used by this process; otherwise one clause that says why not
// ("built without CUDA", "no NVIDIA driver", ...). Never throws.
std::string cuda_unavailable_reason();

struct CudaDeviceOptions {
  int ordinal = 0;
  size_t cap_bytes = 0;  // hard cap on this process's device memory
};

// Throws DeviceError with CUDA's own text and what was being done. `traffic` must outlive it.
std::unique_ptr<Device> make_cuda_device(const CudaDeviceOptions& options, TrafficSink& traffic);

}  // namespace strata
