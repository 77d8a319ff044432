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

// CUDA devices that this process sees; 0 where CUDA cannot be used. Never throws.
int cuda_device_count();

struct CudaDeviceOptions {
  int ordinal = 0;
  // Hard cap on this process's device memory; 0: what is free now, less what CUDA's libraries take
  // for themselves.
  size_t cap_bytes = 0;
};

// Throws DeviceError with CUDA's own text and what was being done. `traffic` must outlive it.
std::unique_ptr<Device> make_cuda_device(const CudaDeviceOptions& options, TrafficSink& traffic);

}  // namespace strata
