#include "io/block_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string_view>
#include <system_error>
#include <utility>

#include "io/durable_file.h"
#include "strata/error.h"

namespace strata::io {
namespace {

constexpr uint32_t kAssumedAlignment = 4096;  // no drive or file system in use asks for more
constexpr mode_t kScratchMode = 0600;
constexpr mode_t kStateMode = 0644;

[[noreturn]] void fail(std::string_view what, const std::string& path, int error_number) {
  throw IoError(
      fmt::format("cannot {} {}: {}", what, path, std::generic_category().message(error_number)),
      path, 0, error_number);
}

std::string readable(uint64_t bytes) {
  constexpr std::array<std::string_view, 6> kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return fmt::format("{} bytes", bytes);
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  for (; value >= 1024; value /= 1024) ++unit;
  return fmt::format("{:.1f} {}", value, kUnits[unit]);
}

[[noreturn]] void fail_reservation(const std::string& directory, uint64_t bytes,
                                   uint64_t available_bytes, int error_number) {
  throw IoError(fmt::format("cannot reserve {} in {}, which has {} free ({}): free some space or "
                            "name a directory on another disk",
                            readable(bytes), directory, readable(available_bytes),
                            std::generic_category().message(error_number)),
                directory, 0, error_number);
}

// Asked before anything is created: filling the disk to learn that it is too small would take the
// last block away from everybody else.
void check_room(const std::string& directory, uint64_t bytes) {
  const uint64_t available = free_bytes(directory);
  if (bytes > available) fail_reservation(directory, bytes, available, ENOSPC);
}

int open_unlinked(const std::string& directory) {
  std::string name = directory + "/.strata-scratch-XXXXXX";
  const int fd = ::mkostemp(name.data(), O_CLOEXEC);
  if (fd < 0) fail("create scratch in", directory, errno);
  if (::unlink(name.c_str()) != 0) {
    const int error_number = errno;
    ::close(fd);
    fail("unlink", name, error_number);
  }
  return fd;
}

int open_scratch(const std::string& directory) {
  const int fd = ::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, kScratchMode);
  if (fd >= 0) return fd;
  // File systems without O_TMPFILE say EOPNOTSUPP, or EISDIR where they do not know the flag.
  if (errno == EOPNOTSUPP || errno == EISDIR) return open_unlinked(directory);
  fail("create scratch in", directory, errno);
}

// They accept O_DIRECT on recent kernels, but there is no disk to be direct to.
bool lives_in_memory(int fd) {
  struct statfs info = {};
  return ::fstatfs(fd, &info) == 0 && (info.f_type == TMPFS_MAGIC || info.f_type == RAMFS_MAGIC);
}

}  // namespace

uint64_t free_bytes(const std::string& directory) {
  struct statvfs info = {};
  if (::statvfs(directory.c_str(), &info) != 0) fail("read the free space of", directory, errno);
  return static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
}

BlockFile BlockFile::create_scratch(const std::string& directory, uint64_t bytes,
                                    const BlockFileOptions& options, LogSink& log) {
  check_room(directory, bytes);
  BlockFile file(open_scratch(directory), directory + "/(scratch)");
  file.reserve(bytes, directory);
  file.choose_direct(options.direct, log);
  return file;
}

BlockFile BlockFile::create(const std::string& path, uint64_t bytes,
                            const BlockFileOptions& options, LogSink& log) {
  const std::string directory = parent_directory(path);
  check_room(directory, bytes);
  const int fd = ::open(path.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, kStateMode);
  if (fd < 0) fail("create", path, errno);
  BlockFile file(fd, path);
  try {
    file.reserve(bytes, directory);
    file.choose_direct(options.direct, log);
    if (::fsync(fd) != 0) fail("flush", path, errno);
    sync_directory(directory);
  } catch (...) {
    ::unlink(path.c_str());
    throw;
  }
  return file;
}

BlockFile BlockFile::open(const std::string& path, const BlockFileOptions& options, LogSink& log) {
  // O_NONBLOCK: a fifo in the file's place must be an error, not a wait.
  const int access = options.read_only ? O_RDONLY : O_RDWR;
  const int fd = ::open(path.c_str(), access | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) fail("open", path, errno);
  BlockFile file(fd, path);
  struct stat info = {};
  if (::fstat(fd, &info) != 0) fail("read the size of", path, errno);
  if (!S_ISREG(info.st_mode)) {
    throw IoError(fmt::format("cannot open {}: it is not a regular file", path), path, 0, EINVAL);
  }
  if (::fcntl(fd, F_SETFL, 0) != 0) fail("open", path, errno);
  file.bytes_ = static_cast<uint64_t>(info.st_size);
  file.choose_direct(options.direct, log);
  return file;
}

BlockFile::BlockFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}

BlockFile::BlockFile(BlockFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      path_(std::move(other.path_)),
      bytes_(other.bytes_),
      direct_(other.direct_),
      memory_alignment_(other.memory_alignment_),
      offset_alignment_(other.offset_alignment_) {}

BlockFile& BlockFile::operator=(BlockFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  std::swap(bytes_, other.bytes_);
  std::swap(direct_, other.direct_);
  std::swap(memory_alignment_, other.memory_alignment_);
  std::swap(offset_alignment_, other.offset_alignment_);
  return *this;
}

BlockFile::~BlockFile() {
  if (fd_ >= 0) ::close(fd_);
}

void BlockFile::reserve(uint64_t bytes, const std::string& directory) {
  bytes_ = bytes;
  if (bytes == 0) return;
  // posix_fallocate writes a byte into each block where the file system has no fallocate; that
  // takes unaligned writes, so O_DIRECT comes later.
  int error_number = 0;
  do {
    error_number = ::posix_fallocate(fd_, 0, static_cast<off_t>(bytes));
  } while (error_number == EINTR);
  if (error_number != 0) {
    fail_reservation(directory, bytes, free_bytes(directory), error_number);
  }
}

void BlockFile::choose_direct(DirectMode mode, LogSink& log) {
  if (mode == DirectMode::off) return;
  const std::string refusal = try_direct();
  direct_ = refusal.empty();
  if (direct_) return;
  if (mode == DirectMode::required) {
    throw IoError(fmt::format("cannot use direct I/O on {}: {}", path_, refusal), path_, 0, EINVAL);
  }
  log.log(LogLevel::warning,
          fmt::format("{} is read and written through the page cache: {}", path_, refusal));
}

// Switches O_DIRECT on and learns the alignments; returns why not, or nothing.
std::string BlockFile::try_direct() {
  if (lives_in_memory(fd_)) return "its file system lives in memory";
  struct statx info = {};
  const bool told = ::statx(fd_, "", AT_EMPTY_PATH, STATX_DIOALIGN, &info) == 0 &&
                    (info.stx_mask & STATX_DIOALIGN) != 0;
  if (told && info.stx_dio_offset_align == 0) return "its file system has no direct I/O for it";
  if (::fcntl(fd_, F_SETFL, O_DIRECT) != 0) return "its file system refuses O_DIRECT";
  memory_alignment_ = told ? info.stx_dio_mem_align : kAssumedAlignment;
  offset_alignment_ = told ? info.stx_dio_offset_align : kAssumedAlignment;
  return "";
}

}  // namespace strata::io
