// Where training begins.
#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "engine/checkpoint/checkpoint_reader.h"
#include "engine/checkpoint/checkpoint_writer.h"
#include "engine/runtime/runtime.h"
#include "strata/error.h"

namespace strata::engine {

RunState Runtime::run_state() const {
  const LossScaler::State scaler = loss_scaler_.state();
  return {step_, config_.seed, data_position_, scaler.scale, scaler.hysteresis, scaler.good_steps};
}

void Runtime::restore(const RunState& state) {
  if (state.seed != config_.seed) {
    throw ConfigError(fmt::format(
        "the run to go on with has seed {} and this one {}: resume with the same (--seed, or "
        "strata.seed)",
        state.seed, config_.seed));
  }
  loss_scaler_.restore({state.loss_scale, state.hysteresis, state.good_steps});
  step_ = state.step;
  data_position_ = next_data_position_ = state.data_position;
}

void Runtime::start(const ParameterReader& initial_values) {
  if (recover()) {
    files_->note_state();
    begin_line_ = fmt::format("going on from step {}, as it was recovered", step_);
    return;
  }
  if (plan_->recovers_steps) {
    store_->slots()->erase_records();
    of_all_ranks(std::array{0.0});
  }
  if (!files_->checkpoint().empty()) {
    load_checkpoint();
    begin_line_ = fmt::format("going on from step {}, of '{}'", step_, files_->checkpoint());
  } else {
    files_->require_origin();
    access_->initialize({.seed = config_.seed, .given = initial_values});
    begin_line_ = "beginning with initial values";
  }
  if (plan_->recovers_steps) {
    // They never change, and are no part of a step.
    if (plan_->state.frozen.grains() > 0) {
      CheckpointWriter frozen(frozen_path(), access_->frozen_contents(), *comm_);
      access_->save_frozen(frozen);
      frozen.finish({.run = run_state()});
    }
    store_->slots()->begin(static_cast<uint64_t>(step_), encode(run_state()));
    of_all_ranks(std::array{0.0});
    files_->note_state();
  }
}

std::string Runtime::frozen_path() const { return files_->path() + "/frozen"; }

// Ranks' newest records are at most a step apart; the older one's state is whole on all of them.
bool Runtime::recover() {
  if (store_ == nullptr || !plan_->recovers_steps) return false;
  offload::SlotStore& slots = *store_->slots();
  std::optional<offload::JournalRecord> newest;
  if (store_->has_old_state()) newest = slots.recover();
  constexpr double kNothing = -1;
  const double mine = newest ? static_cast<double>(newest->generation) : kNothing;
  if (!newest) files_->require_no_state();
  const double oldest = std::ranges::min(of_all_ranks(std::array{mine}));
  // Killed before all ranks had their first state: there is nothing yet to go on from.
  if (oldest == kNothing) return false;
  if (mine != oldest) newest = slots.recover(static_cast<uint64_t>(oldest));
  if (!newest) {
    throw CorruptionError(
        fmt::format("the journal in '{}' has no record of step {}, from which other ranks go on: "
                    "resume from a checkpoint",
                    files_->path(), oldest));
  }
  restore(decode(newest->payload));
  access_->restore_parameters();
  if (plan_->state.frozen.grains() > 0) {
    CheckpointReader frozen(frozen_path());
    access_->load_frozen(frozen);
  }
  return true;
}

void Runtime::load_checkpoint() {
  CheckpointReader checkpoint(files_->checkpoint());
  const auto steps = of_all_ranks(std::array{static_cast<double>(checkpoint.manifest().run.step)});
  if (std::any_of(steps.begin(), steps.end(), [&](double step) { return step != steps[0]; })) {
    throw ConfigError(
        fmt::format("ranks find different checkpoints under '{}': name one, in a directory that "
                    "all of them see",
                    resume_));
  }
  restore(checkpoint.manifest().run);
  access_->load(checkpoint);
}

void Runtime::set_data_position(int64_t position) {
  if (position < 0) {
    throw ConfigError(
        fmt::format("data cannot go on at position {}: positions start at 0", position));
  }
  next_data_position_ = position;
}

}  // namespace strata::engine
