// What a run saves, and when it may forget the rest.
#include <fmt/format.h>

#include <memory>
#include <string>
#include <utility>

#include "engine/checkpoint/checkpoint_folder.h"
#include "engine/checkpoint/checkpoint_writer.h"
#include "engine/runtime/runtime.h"
#include "strata/error.h"
#include "strata/wait_scope.h"

namespace strata::engine {
namespace {

// What `save` makes of a checkpoint, or why it does not.
template <typename Save>
CheckpointOutcome outcome_of(int64_t step, const std::string& path, const Save& save) {
  CheckpointOutcome outcome = {step, path, {}};
  try {
    save();
  } catch (const SharedIoError& error) {
    outcome.failure = error.what();
  }
  return outcome;
}

}  // namespace

Manifest Runtime::manifest() const {
  Manifest manifest;
  manifest.run = run_state();
  manifest.model = model_.description;
  manifest.model_config = model_.config;
  manifest.config = config_.text;
  manifest.moment_codec = config_.moment_codec;
  return manifest;
}

void Runtime::require_between_steps() const {
  if (own_ != nullptr && own_->begun) {
    throw ConfigError("a checkpoint is saved in the middle of a step: call step() first");
  }
}

CheckpointFolder Runtime::own_checkpoints() const {
  if (files_->has_directory()) return checkpoint_folder(files_->path());
  throw ConfigError(
      "the run has no directory for its checkpoints: give it one (Options::run_directory), or "
      "save under a path of your own");
}

void Runtime::save_checkpoint(const std::string& path) {
  require_between_steps();
  end_copy();
  settle();
  CheckpointWriter checkpoint(path, access_->checkpoint_contents(), *comm_);
  access_->save(checkpoint);
  checkpoint.finish(manifest());
}

std::string Runtime::save_checkpoint(int keep) {
  const std::string path = own_checkpoints().of_step(step_);
  save_checkpoint(path);
  tidy_checkpoints(path, keep);
  return path;
}

void Runtime::tidy_checkpoints(const std::string& saved, int keep) {
  try {
    if (world_.rank == 0) own_checkpoints().tidy(keep);
  } catch (const IoError& error) {
    log_.log(LogLevel::warning,
             fmt::format("the checkpoint '{}' is saved, but {}", saved, error.what()));
  }
}

void Runtime::begin_checkpoint(int keep) {
  const std::string path = own_checkpoints().of_step(step_);
  if (!plan_->recovers_steps) {
    outcomes_.push_back(outcome_of(step_, path, [&] { save_checkpoint(keep); }));
    return;
  }
  require_between_steps();
  end_copy();
  const auto begin = [&] {
    copy_ = std::make_unique<CheckpointCopy>(
        path, manifest(), commit_->record(),
        CheckpointCopy::Parts{*plan_, *state_, *store_->slots(), *comm_, *checkpoint_queue_,
                              checkpoint_transfer_.span(), recorder_, config_.checkpoint_share});
  };
  CheckpointOutcome begun = outcome_of(step_, path, begin);
  if (!begun.failure.empty()) outcomes_.push_back(std::move(begun));
  copy_keep_ = keep;
  all_copied_ = false;
}

std::vector<CheckpointOutcome> Runtime::await_checkpoints() {
  end_copy();
  return std::exchange(outcomes_, {});
}

// The copy is over whether it succeeds or not.
void Runtime::end_copy() {
  if (copy_ == nullptr) return;
  const std::unique_ptr<CheckpointCopy> copy = std::move(copy_);
  const WaitScope wait(recorder_, {StateKind::master, -1, kSlotWaitLabel}, "driver");
  outcomes_.push_back(outcome_of(copy->step(), copy->path(), [&] {
    copy->finish();
    tidy_checkpoints(copy->path(), copy_keep_);
  }));
}

// Of two slots a copy holds the one that would be written now.
void Runtime::await_slot() {
  if (copy_ == nullptr || copy_->copied() || store_->slots()->has_next_slot()) return;
  const WaitScope wait(recorder_, {StateKind::master, -1, kSlotWaitLabel}, "driver");
  copy_->wait();
  require(store_->slots()->has_next_slot(), "a step has no slot to write to");
}

void Runtime::remove_state_files() {
  settle();
  if (!plan_->recovers_steps) return;
  end_copy();
  if (!CheckpointFolder::is_checkpoint(own_checkpoints().of_step(step_))) {
    throw ConfigError(fmt::format(
        "no checkpoint has step {}, which the state files hold: save one first", step_));
  }
  has_ended_ = true;
  files_->remove_state();
}

}  // namespace strata::engine
