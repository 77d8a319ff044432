// The two tables every room shares: where bytes live, and what they mean.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace strata {

// A place for bytes, fastest first.
enum class Tier : uint8_t { device, host, nvme };
inline constexpr size_t kTierCount = 3;
inline constexpr std::array<Tier, kTierCount> kTiers = {Tier::device, Tier::host, Tier::nvme};

constexpr std::string_view name(Tier tier) {
  constexpr std::array<std::string_view, kTierCount> names = {"device", "host", "nvme"};
  return names[static_cast<size_t>(tier)];
}

// What a range of bytes is to training.
enum class StateKind : uint8_t {
  param,  // trainable parameters
  grad,
  master,
  exp_avg,
  exp_avg_sq,
  activation,
  frozen,  // parameters that are not trained
  other,
};
inline constexpr size_t kStateKindCount = 8;

// The kinds that the optimizer keeps between steps, in the order they are stored.
inline constexpr size_t kOptimizerKindCount = 3;
inline constexpr std::array<StateKind, kOptimizerKindCount> kOptimizerKinds = {
    StateKind::master, StateKind::exp_avg, StateKind::exp_avg_sq};

constexpr std::string_view name(StateKind kind) {
  constexpr std::array<std::string_view, kStateKindCount> names = {
      "param", "grad", "master", "exp_avg", "exp_avg_sq", "activation", "frozen", "other"};
  return names[static_cast<size_t>(kind)];
}

}  // namespace strata
