// Kills its process with SIGKILL at a chosen file operation: before it, in the middle, or behind
// it.
//
// The operations are those of this program (killing.cc takes the places of pread, pwrite,
// fdatasync, fsync and rename), told apart by the file they are for. Works with Config::io_engine
// threads.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace strata::testing_support {

enum class KillPhase : uint8_t { read, write, flush, journal, checkpoint, rename };
inline constexpr size_t kKillPhases = 6;
constexpr std::string_view name(KillPhase phase) {
  constexpr std::array<std::string_view, kKillPhases> names = {"read",    "write",      "flush",
                                                               "journal", "checkpoint", "rename"};
  return names[static_cast<size_t>(phase)];
}

enum class KillMoment : uint8_t { before, amid, behind };  // amid: half of the bytes

struct KillPlan {
  KillPhase phase = KillPhase::read;
  int64_t at = -1;  // that operation of its phase, from 0 on; -1: none
  KillMoment moment = KillMoment::before;
};

// From here on.
void kill_by(const KillPlan& plan);
// Operations so far, by phase.
std::array<int64_t, kKillPhases> operations();

}  // namespace strata::testing_support
