// Kills its process with SIGKILL at a chosen file operation: before it, in the middle, or behind
// it.
//
// The operations are those of this program: killing.cc takes the places of the system's functions,
// and tells their calls apart by what they do and the file they are for. Works with
// Config::io_engine threads.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace strata::testing_support {

// Of names: create (files, directories, links), rename, remove. Of bytes: in state, journal and
// checkpoint files, and text, which is written to descriptions and locks. Resize reserves and cuts.
enum class KillPhase : uint8_t {
  read,
  write,
  flush,
  journal,
  checkpoint,
  rename,
  create,
  resize,
  text,
  remove,
};
inline constexpr size_t kKillPhases = 10;
constexpr std::string_view name(KillPhase phase) {
  constexpr std::array<std::string_view, kKillPhases> names = {
      "read",   "write",  "flush",  "journal", "checkpoint",
      "rename", "create", "resize", "text",    "remove"};
  return names[static_cast<size_t>(phase)];
}

enum class KillMoment : uint8_t { before, amid, behind };  // amid: half of the bytes

struct KillPlan {
  KillPhase phase = KillPhase::read;
  int64_t at = -1;  // that operation of its phase, from 0 on; -1: none
  KillMoment moment = KillMoment::before;
};

// From here on; operations on files under `root` count, by their absolute paths.
void kill_by(const KillPlan& plan, const std::string& root);
// Operations so far, by phase.
std::array<int64_t, kKillPhases> operations();

}  // namespace strata::testing_support
