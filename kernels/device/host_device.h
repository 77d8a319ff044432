// The host as a device: a worker thread a queue, memory with a hard cap like a GPU's.
//
// Freed memory is unmapped at once, so that work which still touches it faults instead of reading
// stale bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "kernels/device/device.h"

namespace strata {

struct HostDeviceOptions {
  size_t cap_bytes = std::numeric_limits<size_t>::max();
  // For tests: before each task a queue sleeps for a random time below `max_delay_us`, from this
  // seed. 0 switches it off.
  uint64_t delay_seed = 0;
  int max_delay_us = 300;
  // NUMA nodes that memory is dealt to, device's and pinned; none: the kernel chooses.
  std::vector<int> memory_nodes = {};
  // For tests: device memory faults where it is touched outside the device's queues
  // (memory_guard.h).
  bool guard_memory = false;
};

// `traffic` must outlive the device.
std::unique_ptr<Device> make_host_device(const HostDeviceOptions& options, TrafficSink& traffic);

// A queue of host threads outside any device, for work that runs on the CPU whatever the device is
// (the optimizer update, landing gradients). The delays of `options` apply as above.
std::unique_ptr<Queue> make_host_queue(const QueueOptions& queue, const HostDeviceOptions& options,
                                       TrafficSink& traffic);

}  // namespace strata
