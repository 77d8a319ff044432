#include "tests/engine/killing.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>

namespace {

using strata::testing_support::KillMoment;
using strata::testing_support::KillPhase;
using strata::testing_support::KillPlan;
using strata::testing_support::kKillPhases;

KillPlan plan;
std::atomic<const std::string*> root = nullptr;  // null: nothing counts yet
std::array<std::atomic<int64_t>, kKillPhases> counts = {};

template <typename Function>
Function* next(const char* symbol) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, symbol));
}

[[noreturn]] void die() {
  raise(SIGKILL);
  _exit(1);
}

bool holds(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

bool is_ours(std::string_view path) {
  const std::string* const ours = root.load();
  return ours != nullptr && path.starts_with(*ours);
}

std::string path_of(int fd) {
  char path[4096];
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  const ssize_t length = readlink(link.c_str(), path, sizeof(path));
  return {path, static_cast<size_t>(std::max<ssize_t>(length, 0))};
}

// As the *at functions take it.
std::string path_at(int directory, const char* name) {
  return *name == '/' ? name : path_of(directory) + "/" + name;
}

// What an operation on this path belongs to; none of ours otherwise. Scratch files have no name.
std::optional<KillPhase> phase_of(std::string_view path, KillPhase of_state) {
  if (!is_ours(path)) return std::nullopt;
  if (holds(path, ".journal")) return KillPhase::journal;
  if (holds(path, "rank-") && holds(path, ".state")) return of_state;
  if (holds(path, "checkpoints/")) return KillPhase::checkpoint;
  if (holds(path, "/nvme/#") || holds(path, "(deleted)")) return of_state;
  return std::nullopt;
}

std::optional<KillPhase> phase_of(int fd, KillPhase of_state) {
  return phase_of(path_of(fd), of_state);
}

// Of whatever file of ours.
std::optional<KillPhase> phase_at(std::string_view path, KillPhase phase) {
  return is_ours(path) ? std::optional(phase) : std::nullopt;
}

// Of whatever file.
std::optional<KillPhase> flush_phase(int fd) {
  return phase_of(fd, KillPhase::flush) ? std::optional(KillPhase::flush) : std::nullopt;
}

// Counts an operation; whether the process is to die at it.
bool is_due(std::optional<KillPhase> phase) {
  if (!phase) return false;
  const int64_t at = counts[static_cast<size_t>(*phase)].fetch_add(1);
  return plan.phase == *phase && plan.at == at;
}

const auto nothing = [] {};

// Runs `whole`, or dies at it; `half` is as much of it as can be done by halves.
template <typename Whole, typename Half>
auto run(std::optional<KillPhase> phase, const Whole& whole, const Half& half) {
  if (!is_due(phase)) return whole();
  if (plan.moment == KillMoment::amid) half();
  if (plan.moment == KillMoment::behind) whole();
  die();
}

}  // namespace

extern "C" ssize_t pread(int fd, void* data, size_t bytes, off_t offset) {
  static auto* const real = next<ssize_t(int, void*, size_t, off_t)>("pread");
  const auto whole = [&] { return real(fd, data, bytes, offset); };
  return run(phase_of(fd, KillPhase::read), whole, whole);
}

extern "C" ssize_t pwrite(int fd, const void* data, size_t bytes, off_t offset) {
  static auto* const real = next<ssize_t(int, const void*, size_t, off_t)>("pwrite");
  constexpr size_t kBlock = 4096;  // of O_DIRECT
  return run(
      phase_of(fd, KillPhase::write), [&] { return real(fd, data, bytes, offset); },
      [&] { return real(fd, data, bytes / 2 / kBlock * kBlock, offset); });
}

extern "C" int fdatasync(int fd) {
  static auto* const real = next<int(int)>("fdatasync");
  const auto whole = [&] { return real(fd); };
  return run(flush_phase(fd), whole, whole);
}

extern "C" int fsync(int fd) {
  static auto* const real = next<int(int)>("fsync");
  const auto whole = [&] { return real(fd); };
  return run(flush_phase(fd), whole, whole);
}

extern "C" int rename(const char* from, const char* to) noexcept {
  static auto* const real = next<int(const char*, const char*)>("rename");
  const auto whole = [&] { return real(from, to); };
  return run(phase_at(to, KillPhase::rename), whole, nothing);
}

extern "C" int renameat2(int from_directory, const char* from, int to_directory, const char* to,
                         unsigned flags) noexcept {
  static auto* const real = next<int(int, const char*, int, const char*, unsigned)>("renameat2");
  const auto whole = [&] { return real(from_directory, from, to_directory, to, flags); };
  return run(phase_at(path_at(to_directory, to), KillPhase::rename), whole, nothing);
}

extern "C" int open(const char* path, int flags, ...) {
  static auto* const real = next<int(const char*, int, ...)>("open");
  mode_t mode = 0;
  const bool creates = (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE;
  if (creates) {
    va_list more;
    va_start(more, flags);
    mode = va_arg(more, mode_t);
    va_end(more);
  }
  const auto whole = [&] { return real(path, flags, mode); };
  return creates ? run(phase_at(path, KillPhase::create), whole, nothing) : whole();
}

extern "C" int mkdir(const char* path, mode_t mode) noexcept {
  static auto* const real = next<int(const char*, mode_t)>("mkdir");
  const auto whole = [&] { return real(path, mode); };
  return run(phase_at(path, KillPhase::create), whole, nothing);
}

extern "C" int symlink(const char* target, const char* path) noexcept {
  static auto* const real = next<int(const char*, const char*)>("symlink");
  const auto whole = [&] { return real(target, path); };
  return run(phase_at(path, KillPhase::create), whole, nothing);
}

extern "C" int ftruncate(int fd, off_t bytes) noexcept {
  static auto* const real = next<int(int, off_t)>("ftruncate");
  const auto whole = [&] { return real(fd, bytes); };
  return run(phase_at(path_of(fd), KillPhase::resize), whole, whole);
}

extern "C" int posix_fallocate(int fd, off_t offset, off_t bytes) {
  static auto* const real = next<int(int, off_t, off_t)>("posix_fallocate");
  return run(
      phase_at(path_of(fd), KillPhase::resize), [&] { return real(fd, offset, bytes); },
      [&] { return real(fd, offset, bytes / 2); });
}

extern "C" ssize_t write(int fd, const void* data, size_t bytes) {
  static auto* const real = next<ssize_t(int, const void*, size_t)>("write");
  return run(
      phase_at(path_of(fd), KillPhase::text), [&] { return real(fd, data, bytes); },
      [&] { return real(fd, data, bytes / 2); });
}

extern "C" int unlink(const char* path) noexcept {
  static auto* const real = next<int(const char*)>("unlink");
  const auto whole = [&] { return real(path); };
  return run(phase_at(path, KillPhase::remove), whole, nothing);
}

// What std::filesystem removes a file or an empty directory with.
extern "C" int remove(const char* path) noexcept {
  static auto* const real = next<int(const char*)>("remove");
  const auto whole = [&] { return real(path); };
  return run(phase_at(path, KillPhase::remove), whole, nothing);
}

// And a whole directory.
extern "C" int unlinkat(int directory, const char* path, int flags) noexcept {
  static auto* const real = next<int(int, const char*, int)>("unlinkat");
  const auto whole = [&] { return real(directory, path, flags); };
  return run(phase_at(path_at(directory, path), KillPhase::remove), whole, nothing);
}

namespace strata::testing_support {

void kill_by(const KillPlan& to, const std::string& under) {
  static std::string kept;
  kept = under;
  for (auto& count : counts) count = 0;
  plan = to;
  root = &kept;
}

std::array<int64_t, kKillPhases> operations() {
  std::array<int64_t, kKillPhases> result = {};
  for (size_t i = 0; i < kKillPhases; ++i) result[i] = counts[i];
  return result;
}

}  // namespace strata::testing_support
