#include "tests/engine/killing.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <optional>

namespace {

using strata::testing_support::KillMoment;
using strata::testing_support::KillPhase;
using strata::testing_support::KillPlan;
using strata::testing_support::kKillPhases;

KillPlan plan;
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

// What an operation on this path belongs to; none of ours otherwise. Scratch files have no name.
std::optional<KillPhase> phase_of(std::string_view path, KillPhase of_state) {
  if (holds(path, ".journal")) return KillPhase::journal;
  if (holds(path, "rank-") && holds(path, ".state")) return of_state;
  if (holds(path, "checkpoints/")) return KillPhase::checkpoint;
  if (holds(path, "/nvme/#") || holds(path, "(deleted)")) return of_state;
  return std::nullopt;
}

std::optional<KillPhase> phase_of(int fd, KillPhase of_state) {
  char link[64];
  char path[4096];
  std::snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
  const ssize_t length = readlink(link, path, sizeof(path));
  if (length <= 0) return std::nullopt;
  return phase_of({path, static_cast<size_t>(length)}, of_state);
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
  return run(KillPhase::rename, whole, [] {});
}

namespace strata::testing_support {

void kill_by(const KillPlan& to) {
  for (auto& count : counts) count = 0;
  plan = to;
}

std::array<int64_t, kKillPhases> operations() {
  std::array<int64_t, kKillPhases> result = {};
  for (size_t i = 0; i < kKillPhases; ++i) result[i] = counts[i];
  return result;
}

}  // namespace strata::testing_support
