// What a run is between two steps, beyond its tensors.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "strata/error.h"

namespace strata::engine {

struct RunState {
  int64_t step = 0;  // steps done
  uint64_t seed = 0;
  int64_t data_position = 0;  // the caller's
  // LossScaler's.
  double loss_scale = 0;
  int64_t hysteresis = 0;
  int64_t good_steps = 0;

  bool operator==(const RunState&) const = default;
};

// A journal record's payload: a version, and the fields in order.
using RunStateBytes = std::array<std::byte, sizeof(uint64_t) + sizeof(RunState)>;
inline constexpr uint64_t kRunStateVersion = 1;
static_assert(std::endian::native == std::endian::little && sizeof(RunState) == 48);

inline RunStateBytes encode(const RunState& state) {
  RunStateBytes bytes;
  std::memcpy(bytes.data(), &kRunStateVersion, sizeof(kRunStateVersion));
  std::memcpy(bytes.data() + sizeof(kRunStateVersion), &state, sizeof(state));
  return bytes;
}

// Throws CorruptionError for what encode() does not make.
inline RunState decode(std::span<const std::byte> bytes) {
  uint64_t version = 0;
  if (bytes.size() == sizeof(RunStateBytes)) std::memcpy(&version, bytes.data(), sizeof(version));
  if (version != kRunStateVersion) {
    throw CorruptionError("the journal's record is of another version of Strata");
  }
  RunState state;
  std::memcpy(&state, bytes.data() + sizeof(version), sizeof(state));
  return state;
}

}  // namespace strata::engine
