// The optimizers, and what each keeps of every parameter beside its master weight.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace strata {

enum class OptimizerKind : uint8_t { adam, adamw, adagrad, lion, sgd };
inline constexpr std::array<OptimizerKind, 5> kOptimizers = {
    OptimizerKind::adam, OptimizerKind::adamw, OptimizerKind::adagrad, OptimizerKind::lion,
    OptimizerKind::sgd};

constexpr std::string_view name(OptimizerKind kind) {
  constexpr std::array<std::string_view, 5> names = {"adam", "adamw", "adagrad", "lion", "sgd"};
  return names[static_cast<size_t>(kind)];
}

struct OptimizerMoments {
  bool exp_avg = false;
  bool exp_avg_sq = false;
};
constexpr OptimizerMoments moments_of(OptimizerKind kind) {
  const bool is_adam = kind == OptimizerKind::adam || kind == OptimizerKind::adamw;
  return {.exp_avg = kind != OptimizerKind::adagrad,
          .exp_avg_sq = is_adam || kind == OptimizerKind::adagrad};
}

constexpr bool has_betas(OptimizerKind kind) {
  return kind != OptimizerKind::sgd && kind != OptimizerKind::adagrad;
}

}  // namespace strata
