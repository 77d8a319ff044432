// Training state by parameter name: initial values, reading, writing, hashing. The verbs around
// training, not of it: they block, and run between steps.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/plan/planner.h"
#include "offload/tier_manager.h"
#include "offload/training_state.h"

namespace strata::engine {

class StateAccess {
 public:
  // All must outlive this object. `transfer` is a device queue.
  StateAccess(const Plan& plan, offload::TrainingState& state, const offload::Arena& frozen,
              offload::TierManager& tiers, Queue& transfer);

  // Writes master weights and parameters from each parameter's initializer, and zero moments.
  // Values are a function of (seed, parameter name, element) alone.
  void initialize(uint64_t seed);

  std::vector<float> read(const ParameterRef& ref, StateKind kind);
  void write(const ParameterRef& ref, std::span<const float> values);

  // 128-bit hash of master, moments and parameters: XXH3 over the hashes of their grains, unit by
  // unit, kind by kind, each in flat-buffer order; then of step and loss scale. A grain never
  // belongs to two ranks, and padding behind a unit's content is left out, so neither placement nor
  // world size enters.
  std::string digest(int64_t step, double loss_scale);

 private:
  // Grains of the shard space that hold a trainable parameter.
  GrainRange grains_of(const ParameterRef& ref) const;
  // Parts of [0, grains) that fit into the buffer, in order.
  std::vector<GrainRange> chunks(GrainRange grains) const;

  void fill_initial(GrainRange chunk, uint64_t seed);
  // Writes values_ as master weights and, cast, as parameters of the chunk.
  void store_weights(GrainRange chunk);
  void store_zero_moments(GrainRange chunk);
  void initialize_frozen(uint64_t seed);
  std::vector<float> read_frozen(const FlatParameter& parameter, const FlatBuffer& flat);
  // Copies through the pinned buffer, piece by piece.
  void copy_frozen(std::byte* frozen, std::byte* outside, size_t bytes, bool read);

  const Plan& plan_;
  offload::TrainingState& state_;
  const offload::Arena& frozen_;
  Queue& transfer_;
  const offload::Arena memory_;
  std::byte* const values_;  // fp32, or a kind as stored
  std::byte* const cast_;    // parameters in their dtype
};

}  // namespace strata::engine
