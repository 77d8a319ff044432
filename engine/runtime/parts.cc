#include "engine/runtime/parts.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "io/bandwidth_probe.h"
#include "io/io_engine.h"
#include "kernels/device/cpu_topology.h"
#include "kernels/device/cuda_device.h"
#include "strata/error.h"

namespace strata::engine {

int thread_count(int asked, const World& world) {
  if (asked > 0) return asked;
  const auto cpus = static_cast<int>(place_of_this_thread().size());
  return std::max(1, world.bound ? cpus : cpus / world.local_size);
}

HostDeviceOptions host_options(const Config& config, const Disturbance& disturbance,
                               const std::vector<int>& memory_nodes) {
  HostDeviceOptions options;
  options.memory_nodes = memory_nodes;
  if (config.device_memory != 0) options.cap_bytes = config.device_memory;
  options.delay_seed = disturbance.delay_seed;
  options.guard_memory = disturbance.guard_memory;
  return options;
}

std::unique_ptr<Device> make_device(const Config& config, const World& world,
                                    const HostDeviceOptions& host, TrafficSink& traffic) {
  const std::string no_cuda = cuda_unavailable_reason();
  if (config.device == DeviceChoice::cuda && !no_cuda.empty()) {
    throw ConfigError(
        fmt::format("strata.device is \"cuda\", but {}: use \"host\" or \"auto\"", no_cuda));
  }
  if (config.device != DeviceChoice::cuda) {
    if (config.reduction == ReductionChoice::fast) {
      throw ConfigError(
          "strata.reduction is \"fast\", which is for ranks on GPUs: use \"exact\", or set "
          "strata.device to \"cuda\"");
    }
    return make_host_device(host, traffic);
  }
  // One process a GPU; those that share one for want of others share its memory too.
  const int devices = cuda_device_count();
  const int sharing = (world.local_size + devices - 1) / devices;
  if (sharing > 1 && config.device_memory == 0) {
    throw ConfigError(fmt::format(
        "{} ranks of this machine share {} GPUs: start one a GPU, or set strata.device_memory to "
        "what a rank may take",
        world.local_size, devices));
  }
  return make_cuda_device(
      {.ordinal = world.local_rank % devices, .cap_bytes = config.device_memory}, traffic);
}

std::string describe_device(const Device& device, const Config& config) {
  if (device.kind() != DeviceKind::host || config.device != DeviceChoice::automatic) {
    return device.description();
  }
  const std::string no_cuda = cuda_unavailable_reason();
  return fmt::format("{} ({})", device.description(),
                     no_cuda.empty() ? "for the GPU set strata.device to \"cuda\"" : no_cuda);
}

MachineMemory machine_memory(const Device& device, const Config& config, int ranks) {
  MachineMemory memory = MachineMemory::of_host(config, ranks);
  if (device.kind() == DeviceKind::cuda) memory.device_bytes = device.cap_bytes();
  return memory;
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

io::BlockFileOptions block_file_options(const Config& config) {
  switch (config.io_direct) {
    case DirectChoice::required:
      return {io::DirectMode::required};
    case DirectChoice::off:
      return {io::DirectMode::off};
    case DirectChoice::automatic:
      break;
  }
  return {io::DirectMode::automatic};
}

io::Stripes make_stripes(const Config& config, const Disturbance& disturbance, uint64_t bytes,
                         LogSink& log) {
  io::Stripes stripes = {config.nvme_paths, config.nvme_weights, config.io_block_bytes};
  if (!stripes.weights.empty()) return stripes;
  if (stripes.directories.size() == 1) {
    stripes.weights = {1};
    return stripes;
  }
  NullTrafficSink not_of_the_run;
  io::IoEngine engine(make_io_backend(config, disturbance, log),
                      {.block_bytes = config.io_block_bytes}, not_of_the_run);
  std::vector<double> bandwidths;
  for (const std::string& directory : stripes.directories) {
    bandwidths.push_back(io::probe_bandwidth(engine, directory, bytes / stripes.directories.size(),
                                             block_file_options(config)));
  }
  stripes.weights = io::weights_for(bandwidths);
  return stripes;
}

std::string describe_paths(const Config& config, const io::StripedFile& file) {
  if (config.nvme_paths.size() == 1) return config.nvme_paths.front();
  std::vector<std::string> shares;
  for (size_t i = 0; i < config.nvme_paths.size(); ++i) {
    shares.push_back(
        fmt::format("{} {:.0f} %", config.nvme_paths[i], 100 * file.pattern().share(i)));
  }
  return fmt::format("{}{}", fmt::join(shares, " and "),
                     config.nvme_weights.empty() ? " by measured bandwidth" : "");
}

}  // namespace strata::engine
