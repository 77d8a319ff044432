#include "io/durable_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "strata/error.h"

namespace strata::io {
namespace {

constexpr int kFileMode = 0644;

[[noreturn]] void fail(const char* what, const std::string& path, int error_number) {
  throw IoError(
      fmt::format("cannot {} {}: {}", what, path, std::generic_category().message(error_number)),
      path, 0, error_number);
}

void write_all(int fd, std::string_view text, const std::string& path) {
  while (!text.empty()) {
    const ssize_t written = ::write(fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("write", path, errno);
    text.remove_prefix(static_cast<size_t>(written));
  }
}

}  // namespace

std::string parent_directory(const std::string& path) {
  const auto parent = std::filesystem::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

void sync_directory(const std::string& directory) {
  const int fd = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail("open", directory, errno);
  const int error_number = ::fsync(fd) == 0 ? 0 : errno;
  ::close(fd);
  if (error_number != 0) fail("flush", directory, error_number);
}

void write_durably(const std::string& path, std::string_view text) {
  const std::string unfinished = path + ".new";
  const int fd = ::open(unfinished.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, kFileMode);
  if (fd < 0) fail("create", unfinished, errno);
  try {
    write_all(fd, text, unfinished);
    if (::fsync(fd) != 0) fail("flush", unfinished, errno);
  } catch (...) {
    ::close(fd);
    ::unlink(unfinished.c_str());
    throw;
  }
  ::close(fd);
  rename_durably(unfinished, path);
}

void rename_durably(const std::string& from, const std::string& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0) fail("give its name to", to, errno);
  sync_directory(parent_directory(to));
}

void exchange_durably(const std::string& from, const std::string& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0) {
    sync_directory(parent_directory(to));
    return;
  }
  if (errno != EINVAL && errno != ENOSYS) fail("give its name to", to, errno);
  const std::string aside = from + ".aside";
  rename_durably(to, aside);
  rename_durably(from, to);
  rename_durably(aside, from);
}

void make_directories(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) return;
  const std::string parent = parent_directory(path);
  if (parent != path) make_directories(parent);
  std::filesystem::create_directory(path, error);
  if (error) fail("create", path, error.value());
  sync_directory(parent);
}

std::vector<std::string> list_directory(const std::string& path) {
  std::vector<std::string> paths;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(path, error), end; !error && entry != end;
       entry.increment(error)) {
    paths.push_back(entry->path().string());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

std::string host_name() {
  std::array<char, 256> name = {};
  if (::gethostname(name.data(), name.size() - 1) != 0) return "localhost";
  return name.data();
}

std::optional<FileLock> FileLock::take(const std::string& path) {
  const int fd = ::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, kFileMode);
  if (fd < 0) fail("open", path, errno);
  FileLock lock(fd);
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return std::nullopt;
    fail("lock", path, errno);
  }
  const std::string holder = fmt::format("process {} on {}", ::getpid(), host_name());
  if (::ftruncate(fd, 0) != 0) fail("write", path, errno);
  write_all(fd, holder, path);
  return lock;
}

std::string FileLock::holder(const std::string& path) {
  std::FILE* const file = std::fopen(path.c_str(), "r");
  if (file == nullptr) return "nobody";
  std::array<char, 512> text = {};
  const size_t length = std::fread(text.data(), 1, text.size(), file);
  std::fclose(file);
  return {text.data(), length};
}

FileLock::FileLock(FileLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

FileLock& FileLock::operator=(FileLock&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

FileLock::~FileLock() {
  if (fd_ >= 0) ::close(fd_);
}

}  // namespace strata::io
