#include "engine/runtime/parts.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>

#include "kernels/device/cuda_device.h"
#include "strata/error.h"

namespace strata::engine {

int thread_count(int asked, const World& world) {
  if (asked > 0) return asked;
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return 1;
  const int cores = CPU_COUNT(&allowed);
  return std::max(1, world.bound ? cores : cores / world.local_size);
}

HostDeviceOptions host_options(const Config& config, const Disturbance& disturbance) {
  HostDeviceOptions options;
  if (config.device_memory != 0) options.cap_bytes = config.device_memory;
  options.delay_seed = disturbance.delay_seed;
  return options;
}

std::unique_ptr<Device> make_device(const Config& config, const Disturbance& disturbance,
                                    TrafficSink& traffic, LogSink& log) {
  const std::string no_cuda = cuda_unavailable_reason();
  if (config.device == DeviceChoice::cuda) {
    throw DeviceError(
        no_cuda.empty()
            ? "strata.device is \"cuda\", whose layer kernels are not there yet: use \"host\""
            : fmt::format("strata.device is \"cuda\", but {}: use \"host\" or \"auto\"", no_cuda));
  }
  if (config.device == DeviceChoice::automatic && no_cuda.empty()) {
    log.log(LogLevel::info, "the GPU is left alone: layers run on the host device so far");
  }
  return make_host_device(host_options(config, disturbance), traffic);
}

std::unique_ptr<io::IoBackend> make_io_backend(const Config& config, const Disturbance& disturbance,
                                               LogSink& log) {
  const auto choice = [&] {
    switch (config.io_engine) {
      case IoChoice::io_uring:
        return io::BackendChoice::io_uring;
      case IoChoice::threads:
        return io::BackendChoice::threads;
      case IoChoice::automatic:
        break;
    }
    return io::BackendChoice::automatic;
  }();
  auto backend = io::make_backend(choice, config.io_queue_depth, config.io_threads, log);
  if (disturbance.io) backend = io::make_fault_backend(std::move(backend), *disturbance.io);
  return backend;
}

}  // namespace strata::engine
