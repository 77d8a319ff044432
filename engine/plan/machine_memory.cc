#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>

#include "engine/plan/planner.h"
#include "io/striped_file.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

uint64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  uint64_t total_pages = 0;
  uint64_t resident_pages = 0;
  statm >> total_pages >> resident_pages;
  return resident_pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

uint64_t available_memory_bytes() {
  std::ifstream meminfo("/proc/meminfo");
  std::string key;
  std::string unit;
  uint64_t kib = 0;
  while (meminfo >> key >> kib) {
    if (key == "MemAvailable:") return kib * 1024;
    std::getline(meminfo, unit);
  }
  return static_cast<uint64_t>(sysconf(_SC_AVPHYS_PAGES)) *
         static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

void check_directory(const std::string& path) {
  struct stat status;
  if (stat(path.c_str(), &status) != 0 || !S_ISDIR(status.st_mode)) {
    throw ConfigError(
        fmt::format("nvme_path '{}' is not a directory: create it, or name another", path));
  }
  if (access(path.c_str(), W_OK | X_OK) != 0) {
    throw ConfigError(
        fmt::format("nvme_path '{}' cannot be written ({}): change its permissions, "
                    "or name another",
                    path, std::strerror(errno)));
  }
}

}  // namespace

MachineMemory MachineMemory::of_host(const Config& config, int ranks) {
  MachineMemory memory;
  memory.host_bytes = available_memory_bytes() / static_cast<uint64_t>(ranks);
  memory.device_bytes = memory.host_bytes;
  memory.process_bytes = resident_bytes();
  for (const std::string& path : config.nvme_paths) check_directory(path);
  if (!config.nvme_paths.empty()) {
    memory.disk_bytes = io::striped_free_bytes(config.nvme_paths, config.nvme_weights) /
                        static_cast<uint64_t>(ranks);
  }
  return memory;
}

}  // namespace strata::engine
