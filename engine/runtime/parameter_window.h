// Gathered parameters: device buffers that units' flat buffers pass through, and the views that
// layers compute on.
//
// A unit that lies wholly on the device is used where it lies; the others are copied into the slot
// that the program names. A slot is overwritten only after the compute that used it. Driver thread.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "engine/plan/planner.h"
#include "kernels/device/device.h"
#include "offload/tier_manager.h"
#include "offload/training_state.h"
#include "strata/tensor.h"

namespace strata::engine {

class ParameterWindow {
 public:
  // Label of the time that compute stood still for parameters (Activity::wait).
  static constexpr const char* kWaitLabel = "compute waits for parameters";

  // All must outlive the window. `frozen` holds the frozen flat buffers in plan.frozen_tier.
  ParameterWindow(const Plan& plan, const offload::TrainingState& state,
                  offload::TierManager& tiers, const offload::Arena& frozen, Queue& copy_in);

  // Starts bringing a unit into a slot.
  void gather(int unit, int slot);
  // Makes later work on `compute` wait for everything that `unit` needs, and returns views of its
  // parameters; they hold until the next use() of the same unit.
  std::span<const TensorView> use(int unit, Queue& compute);
  // The work enqueued since use() is the last to touch what `unit` needs.
  void release(int unit, const Event& done);

 private:
  struct Slot {
    std::byte* data = nullptr;
    Event ready;
    Event last_use;
  };
  struct Place {
    std::byte* trainable = nullptr;
    std::byte* frozen = nullptr;
    int slot = -1;  // -1: where it lives on the device
  };

  void copy_trainable(const Unit& unit, int index, std::byte* out);

  const Plan& plan_;
  const offload::TrainingState& state_;
  const offload::Arena& frozen_;
  Queue& copy_in_;
  const size_t element_bytes_;
  offload::Arena memory_;
  std::vector<Slot> slots_;
  std::vector<Place> places_;                   // by unit
  std::vector<std::vector<TensorView>> views_;  // by unit
};

}  // namespace strata::engine
