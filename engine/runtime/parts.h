// The machine a run works with: its device and its I/O, as the configuration chooses them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/plan/planner.h"
#include "io/io_backend.h"
#include "io/striped_file.h"
#include "kernels/device/device.h"
#include "kernels/device/host_device.h"
#include "strata/config.h"
#include "strata/layer_ops.h"
#include "strata/log.h"
#include "strata/traffic.h"
#include "strata/world.h"

namespace strata::engine {

// What tests do to a run. Delays and recoverable faults may not change a bit.
struct Disturbance {
  uint64_t delay_seed = 0;          // random delays before every task of every queue
  bool guard_memory = false;        // the host device's memory faults outside its queues
  std::optional<io::FaultPlan> io;  // short transfers, delays, reordering on the disk
  // Wraps the layers' mathematics, to plant an error in it.
  std::function<std::unique_ptr<ops::LayerOps>(std::unique_ptr<ops::LayerOps>)> wrap_ops;
};

// Threads for `asked`, 0 meaning every CPU that this process may run on: its share of them, where
// the machine's ranks have none of their own.
int thread_count(int asked, const World& world);

// `memory_nodes` as in CpuBinding.
HostDeviceOptions host_options(const Config& config, const Disturbance& disturbance,
                               const std::vector<int>& memory_nodes);

// This rank's GPU, or the host. Throws DeviceError for a device that is not there, ConfigError
// where ranks have to share one.
std::unique_ptr<Device> make_device(const Config& config, const World& world,
                                    const HostDeviceOptions& host, TrafficSink& traffic);

// For the start-up lines: also why it is not a GPU.
std::string describe_device(const Device& device, const Config& config);

// What is free for this rank, one of so many on this machine. A GPU has memory of its own. Throws
// as MachineMemory::of_host() does.
MachineMemory machine_memory(const Device& device, const Config& config, int ranks);

// Throws IoError for an I/O engine that is asked for and forbidden.
std::unique_ptr<io::IoBackend> make_io_backend(const Config& config, const Disturbance& disturbance,
                                               LogSink& log);

io::BlockFileOptions block_file_options(const Config& config);

// The configuration's directories for a file of `bytes`, with its weights; where it has none,
// several directories are measured. Throws IoError.
io::Stripes make_stripes(const Config& config, const Disturbance& disturbance, uint64_t bytes,
                         LogSink& log);

// "/a", or "/a 67 % and /b 33 %", for the start-up lines.
std::string describe_paths(const Config& config, const io::StripedFile& file);

}  // namespace strata::engine
