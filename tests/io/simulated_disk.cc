#include "tests/io/simulated_disk.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <stdexcept>

namespace strata::io {
namespace {

constexpr uint32_t kDepth = 32;

std::pair<dev_t, ino_t> id_of(const struct stat& info) { return {info.st_dev, info.st_ino}; }

}  // namespace

std::string_view name(DiskFault fault) {
  constexpr std::array<std::string_view, kDiskFaultCount> kNames = {
      "flipped read", "misdirected read",  "flipped write", "torn write",
      "lost write",   "misdirected write", "lost flush",    "power loss"};
  return kNames[static_cast<size_t>(fault)];
}

std::optional<Op> befalls(DiskFault fault) {
  switch (fault) {
    case DiskFault::flipped_read:
    case DiskFault::misdirected_read:
      return Op::read;
    case DiskFault::flipped_write:
    case DiskFault::torn_write:
    case DiskFault::lost_write:
    case DiskFault::misdirected_write:
      return Op::write;
    case DiskFault::lost_flush:
      return Op::flush;
    case DiskFault::power_loss:
      break;
  }
  return std::nullopt;
}

// Transfers happen when they are reaped, in order of submission, on the owner's thread.
class SimulatedDisk::Backend final : public IoBackend {
 public:
  explicit Backend(SimulatedDisk& disk) : disk_(disk) {}

  void submit(const Transfer& transfer) override {
    if (waiting_.size() == kDepth) throw std::logic_error("more transfers than the depth");
    waiting_.push_back(transfer);
  }

  size_t reap(std::span<Completion> out, std::chrono::milliseconds timeout) override {
    size_t count = 0;
    for (; count < out.size() && !waiting_.empty(); ++count) {
      out[count] = {waiting_.front().cookie, disk_.perform(waiting_.front())};
      waiting_.pop_front();
    }
    if (count > 0) return count;
    std::unique_lock lock(mutex_);
    const auto woken = [this] { return woken_; };
    if (timeout.count() < 0) {
      changed_.wait(lock, woken);
    } else {
      changed_.wait_for(lock, timeout, woken);
    }
    woken_ = false;
    return 0;
  }

  void wake() override {
    const std::lock_guard lock(mutex_);
    woken_ = true;
    changed_.notify_one();
  }

  uint32_t max_in_flight() const override { return kDepth; }
  std::string name() const override { return "simulated"; }

 private:
  SimulatedDisk& disk_;
  std::deque<Transfer> waiting_;
  std::mutex mutex_;  // protects what follows
  std::condition_variable changed_;
  bool woken_ = false;
};

std::unique_ptr<IoBackend> SimulatedDisk::connect() { return std::make_unique<Backend>(*this); }

void SimulatedDisk::plan(DiskFault fault, int64_t at) {
  const std::lock_guard lock(mutex_);
  planned_.push_back({fault, at});
}

void SimulatedDisk::ignore_flushes(const std::string& path, bool ignored) {
  struct stat info = {};
  if (::stat(path.c_str(), &info) != 0) throw std::runtime_error("cannot look at " + path);
  const std::lock_guard lock(mutex_);
  if (ignored) {
    never_flushed_.insert(id_of(info));
  } else {
    never_flushed_.erase(id_of(info));
  }
}

int64_t SimulatedDisk::fired(DiskFault fault) const {
  const std::lock_guard lock(mutex_);
  return fired_[static_cast<size_t>(fault)];
}

std::vector<Op> SimulatedDisk::transfers() const {
  const std::lock_guard lock(mutex_);
  return transfers_;
}

SimulatedDisk::File& SimulatedDisk::file_of(int fd) {
  struct stat info = {};
  if (::fstat(fd, &info) != 0) throw std::runtime_error("a transfer of no file");
  File& file = files_[id_of(info)];
  if (file.bytes.empty()) {
    const auto bytes = static_cast<size_t>(info.st_size);
    file.bytes.resize(bytes);
    file.safe.resize(bytes);
    file.unsafe.resize((bytes + kBlockBytes - 1) / kBlockBytes);
  }
  return file;
}

// Every plan counts the transfers that it could befall; the first that is due befalls this one.
std::optional<DiskFault> SimulatedDisk::fault_of(Op op) {
  std::optional<DiskFault> due;
  std::erase_if(planned_, [&](Planned& planned) {
    const std::optional<Op> wanted = befalls(planned.fault);
    if (wanted && *wanted != op) return false;
    if (planned.left-- > 0 || due) return false;
    due = planned.fault;
    return true;
  });
  if (due) ++fired_[static_cast<size_t>(*due)];
  return due;
}

int32_t SimulatedDisk::perform(const Transfer& transfer) {
  const std::lock_guard lock(mutex_);
  if (!power_) return -EIO;
  transfers_.push_back(transfer.op);
  File& file = file_of(transfer.fd);
  const std::optional<DiskFault> fault = fault_of(transfer.op);
  if (fault == DiskFault::power_loss) {
    lose_power(file, transfer);
    return -EIO;
  }
  if (transfer.op == Op::read) return read(file, transfer, fault);
  if (transfer.op == Op::write) return write(file, transfer, fault);
  struct stat info = {};
  ::fstat(transfer.fd, &info);
  if (fault != DiskFault::lost_flush && !never_flushed_.contains(id_of(info))) {
    file.safe = file.bytes;
    file.unsafe.assign(file.unsafe.size(), false);
  }
  return 0;
}

int32_t SimulatedDisk::read(const File& file, const Transfer& transfer,
                            std::optional<DiskFault> fault) {
  const bool elsewhere = fault == DiskFault::misdirected_read;
  const uint64_t offset = elsewhere ? other_offset(file, transfer) : transfer.offset;
  if (offset >= file.bytes.size()) return 0;
  const auto bytes = std::min<uint64_t>(transfer.bytes, file.bytes.size() - offset);
  std::memcpy(transfer.data, file.bytes.data() + offset, bytes);
  if (fault == DiskFault::flipped_read) {
    transfer.data[draw(bytes)] ^= static_cast<std::byte>(1u << draw(8));
  }
  return static_cast<int32_t>(bytes);
}

int32_t SimulatedDisk::write(File& file, const Transfer& transfer, std::optional<DiskFault> fault) {
  if (transfer.offset + transfer.bytes > file.bytes.size()) return -ENOSPC;
  uint64_t offset = transfer.offset;
  uint64_t bytes = transfer.bytes;
  if (fault == DiskFault::misdirected_write) offset = other_offset(file, transfer);
  if (fault == DiskFault::lost_write) bytes = 0;
  if (fault == DiskFault::torn_write) bytes = draw_sectors(bytes);
  land(file, offset, transfer.data, bytes);
  if (fault == DiskFault::flipped_write) {
    file.bytes[offset + draw(bytes)] ^= static_cast<std::byte>(1u << draw(8));
  }
  return static_cast<int32_t>(transfer.bytes);
}

// Another place for a transfer, blocks away from its own; its own where the file has no other.
uint64_t SimulatedDisk::other_offset(const File& file, const Transfer& transfer) {
  const uint64_t places = (file.bytes.size() - transfer.bytes) / kBlockBytes + 1;
  if (places < 2) return transfer.offset;
  const uint64_t own = transfer.offset / kBlockBytes;
  return (own + 1 + draw(places - 1)) % places * kBlockBytes;
}

void SimulatedDisk::land(File& file, uint64_t offset, const std::byte* data, uint64_t bytes) {
  const uint64_t end = offset + bytes;
  for (uint64_t at = offset; at < end;) {
    const uint64_t block = at / kBlockBytes;
    const uint64_t block_end = std::min((block + 1) * kBlockBytes, file.bytes.size());
    // A drive may have made an earlier write safe without having been asked.
    if (file.unsafe[block] && draw(2) == 0) {
      std::copy(file.bytes.begin() + static_cast<ptrdiff_t>(block * kBlockBytes),
                file.bytes.begin() + static_cast<ptrdiff_t>(block_end),
                file.safe.begin() + static_cast<ptrdiff_t>(block * kBlockBytes));
    }
    file.unsafe[block] = true;
    const uint64_t run = std::min(end, block_end) - at;
    std::memcpy(file.bytes.data() + at, data + (at - offset), run);
    at += run;
  }
}

// Of a write under way some blocks have come as far as those that were reported.
void SimulatedDisk::lose_power(File& file, const Transfer& transfer) {
  power_ = false;
  if (transfer.op != Op::write) return;
  for (uint64_t done = 0; done < transfer.bytes; done += kBlockBytes) {
    const auto bytes = std::min<uint64_t>(kBlockBytes, transfer.bytes - done);
    if (draw(2) == 0) land(file, transfer.offset + done, transfer.data + done, bytes);
  }
}

void SimulatedDisk::restore_power() {
  const std::lock_guard lock(mutex_);
  // Some losses keep nearly all, some nearly nothing.
  const uint64_t kept_of_8 = draw(9);
  for (auto& [id, file] : files_) {
    for (uint64_t block = 0; block < file.unsafe.size(); ++block) {
      if (!file.unsafe[block]) continue;
      const uint64_t begin = block * kBlockBytes;
      uint64_t bytes = std::min<uint64_t>(kBlockBytes, file.bytes.size() - begin);
      const bool torn = draw(8) == 0;
      if (torn) {
        bytes = draw_sectors(bytes);
      } else if (draw(8) >= kept_of_8) {
        bytes = 0;
      }
      std::memcpy(file.safe.data() + begin, file.bytes.data() + begin, bytes);
    }
    file.bytes = file.safe;
    file.unsafe.assign(file.unsafe.size(), false);
  }
  power_ = true;
}

}  // namespace strata::io
