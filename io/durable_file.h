// Small files and names that survive a power loss once written, and locks that a process holds.
// Everything here blocks; none of it is for the hot path.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace strata::io {

// Makes the names in a directory durable. Throws IoError.
void sync_directory(const std::string& directory);
// The directory that holds `path`.
std::string parent_directory(const std::string& path);

// Puts `text` at `path`, in place of what was there: a reader, also one after a power loss, finds
// the old text or the new one. Throws IoError.
void write_durably(const std::string& path, std::string_view text);

// Makes a directory, with those above it, each name durable. Throws IoError.
void make_directories(const std::string& path);
// What a directory holds, sorted; nothing where it cannot be read.
std::vector<std::string> list_directory(const std::string& path);

// Names what is at `from`, a file or directory on the same file system, `to`, durably. Throws
// IoError; where `to` exists, unless it is an empty directory or both are files, too.
void rename_durably(const std::string& from, const std::string& to);

// The same, in place of what is at `to`, which is at `from` then: at no time is nothing at `to`,
// where the file system can do that.
void exchange_durably(const std::string& from, const std::string& to);

// A lock on a file, made where there is none: one holder at a time, of any process on machines that
// share the file system, gone with its process.
class FileLock {
 public:
  // nullopt while somebody else holds it. Throws IoError.
  static std::optional<FileLock> take(const std::string& path);
  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&& other) noexcept;
  ~FileLock();

  // "process 4711 on node3": of the last one that took it.
  static std::string holder(const std::string& path);

 private:
  explicit FileLock(int fd) : fd_(fd) {}

  int fd_ = -1;
};

// This machine's name.
std::string host_name();

}  // namespace strata::io
