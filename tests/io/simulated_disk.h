// A disk in memory that lies, and whose power goes, from a seed.
//
// It stands below IoEngine, where the kernel and the drive are. Files are real ones, but only to be
// named and opened: their bytes, zeros at first, are the disk's own, and outlive every backend.
// What a kernel reports by itself (errors, short transfers, completions late and out of order) is
// what make_fault_backend() over it adds.
//
// A write is seen by reads at once and is safe after the next flush of its file. When the power
// goes, each 4 KiB block that was not flushed is kept, lost or torn, and so is the write under way.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/io_backend.h"

namespace strata::io {

enum class DiskFault : uint8_t {
  flipped_read,      // one bit is another in memory, not on disk
  misdirected_read,  // of another place in the file
  flipped_write,     // one bit is another on disk
  torn_write,        // its first sectors land, and success is reported
  lost_write,        // reported and never made
  misdirected_write,
  lost_flush,  // reported and never made
  power_loss,  // all transfers fail with EIO from this one on, of whatever kind it is
};
inline constexpr size_t kDiskFaultCount = 8;
std::string_view name(DiskFault fault);
// What kind of transfer a fault befalls; none: any.
std::optional<Op> befalls(DiskFault fault);

class SimulatedDisk {
 public:
  static constexpr uint64_t kBlockBytes = 4096;  // lost or kept as a whole, unless torn
  static constexpr uint64_t kSectorBytes = 512;  // never torn

  explicit SimulatedDisk(uint64_t seed) : random_(seed) {}

  // A backend over this disk, which must outlive it. Several may be over one.
  std::unique_ptr<IoBackend> connect();

  // The `at`-th transfer from now, counted from 0 among those that the fault befalls, goes wrong.
  void plan(DiskFault fault, int64_t at);
  // Reports flushes of a file and makes none: what a program looks like that forgot them.
  void ignore_flushes(const std::string& path, bool ignored);
  // After a power loss, once no backend is there.
  void restore_power();

  // Any thread.
  int64_t fired(DiskFault fault) const;
  std::vector<Op> transfers() const;  // that were made, in order

 private:
  class Backend;
  using FileId = std::pair<dev_t, ino_t>;
  struct File {
    std::vector<std::byte> bytes;  // as reads see them
    std::vector<std::byte> safe;   // as a power loss leaves them, if it leaves nothing else
    std::vector<bool> unsafe;      // blocks that differ
  };
  struct Planned {
    DiskFault fault;
    int64_t left;
  };

  int32_t perform(const Transfer& transfer);
  int32_t read(const File& file, const Transfer& transfer, std::optional<DiskFault> fault);
  int32_t write(File& file, const Transfer& transfer, std::optional<DiskFault> fault);
  void land(File& file, uint64_t offset, const std::byte* data, uint64_t bytes);
  std::optional<DiskFault> fault_of(Op op);
  File& file_of(int fd);
  uint64_t draw(uint64_t below) { return random_() % below; }
  // Whole sectors, fewer than `bytes`.
  uint64_t draw_sectors(uint64_t bytes) {
    return draw((bytes + kSectorBytes - 1) / kSectorBytes) * kSectorBytes;
  }
  uint64_t other_offset(const File& file, const Transfer& transfer);
  void lose_power(File& file, const Transfer& transfer);

  mutable std::mutex mutex_;  // protects what follows
  std::mt19937_64 random_;
  std::map<FileId, File> files_;
  std::set<FileId> never_flushed_;
  std::vector<Planned> planned_;
  std::array<int64_t, kDiskFaultCount> fired_ = {};
  std::vector<Op> transfers_;
  bool power_ = true;
};

}  // namespace strata::io
