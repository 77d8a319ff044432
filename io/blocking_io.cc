#include "io/blocking_io.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "strata/error.h"
#include "strata/log.h"

namespace strata::io {
namespace {

[[noreturn]] void fail(std::string_view verb, const BlockFile& file, uint64_t offset,
                       int error_number) {
  const std::string reason =
      error_number == 0 ? "the file ends there" : std::generic_category().message(error_number);
  throw IoError(fmt::format("cannot {} {} at byte {}: {}", verb, file.path(), offset, reason),
                file.path(), offset, error_number);
}

// Calls transfer(bytes done so far), which returns as read(2) does, until `bytes` are done.
template <typename Transfer>
void transfer_fully(std::string_view verb, const BlockFile& file, uint64_t offset, size_t bytes,
                    const Transfer& transfer) {
  for (size_t done = 0; done < bytes;) {
    const ssize_t result = transfer(done);
    if (result < 0 && errno == EINTR) continue;
    if (result <= 0) fail(verb, file, offset + done, result < 0 ? errno : 0);
    done += static_cast<size_t>(result);
  }
}

}  // namespace

void read_fully(const BlockFile& file, uint64_t offset, std::span<std::byte> out) {
  transfer_fully("read", file, offset, out.size(), [&](size_t done) {
    return ::pread(file.fd(), out.data() + done, out.size() - done,
                   static_cast<off_t>(offset + done));
  });
}

void write_fully(const BlockFile& file, uint64_t offset, std::span<const std::byte> bytes) {
  transfer_fully("write", file, offset, bytes.size(), [&](size_t done) {
    return ::pwrite(file.fd(), bytes.data() + done, bytes.size() - done,
                    static_cast<off_t>(offset + done));
  });
}

void write_back(const BlockFile& file) {
  constexpr unsigned kAll =
      SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
  if (::sync_file_range(file.fd(), 0, 0, kAll) != 0) fail("write back", file, 0, errno);
}

void flush(const BlockFile& file) {
  if (::fsync(file.fd()) != 0) fail("flush", file, 0, errno);
}

void write_new_file(const std::string& path, std::string_view text) {
  NullLogSink silent;
  const BlockFile file = BlockFile::create(path, text.size(), {.direct = DirectMode::off}, silent);
  write_fully(file, 0, std::as_bytes(std::span(text)));
  flush(file);
}

}  // namespace strata::io
