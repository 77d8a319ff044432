// A training step: gradients, the norm and what it decides, the update, and an account of all that.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "engine/runtime/lr_schedule.h"
#include "engine/runtime/runtime.h"
#include "strata/clock.h"
#include "strata/error.h"
#include "strata/wait_scope.h"

namespace strata::engine {
namespace {

double seconds(int64_t ns) { return static_cast<double>(ns) * 1e-9; }

}  // namespace

StepResult Runtime::train_step(std::span<const Batch> micro_batches) {
  if (own_ != nullptr) {
    throw ConfigError("the caller computes (Options::own_compute): use gather, reduce and step");
  }
  check_batches(micro_batches, static_cast<size_t>(config_.accumulation_steps));
  const StepAccount account = begin_step();
  upload(micro_batches);
  execute(plan_->step, /*training=*/true);
  StepResult result = finish_step(account, read_losses(micro_batches.size()));
  check_traffic(account.moved_before, planned(result));
  return result;
}

Runtime::StepAccount Runtime::begin_step() {
  if (has_ended_) {
    throw ConfigError("the run's state files were removed, which ended it: make another engine");
  }
  StepAccount account;
  account.begin_ns = now_ns();
  account.exposed_before = exposed();
  if (all_copied_) end_copy();
  account.moved_before = moved();
  marks_ = {};
  marks_.last = account.begin_ns;
  account.number = step_ + 1;
  const StepRates rates = step_rates(config_, account.number);
  account.lr = rates.lr;
  // Local gradients are means over a rank's micro-batch, times the loss scale; the step's is the
  // mean over all of them.
  account.mean_scale =
      1.0 / (loss_scaler_.scale() * static_cast<double>(config_.accumulation_steps * world_.size));
  updater_->begin({account.number, rates, account.mean_scale});
  commit_awaited_ = false;
  return account;
}

StepResult Runtime::finish_step(const StepAccount& account, double losses) {
  StepResult result;
  result.step = account.number;
  result.lr = account.lr;
  result.loss_scale = loss_scaler_.scale();
  const double squares = lander_->finish();
  const int64_t step_begin = now_ns();
  const double stop = stop_ != nullptr ? stop_->load() : 0;
  const double copied = copy_ != nullptr && copy_->copied() ? 1 : 0;
  const auto of_ranks = of_all_ranks(std::array{losses, squares, stop, copied});
  all_copied_ = copy_ != nullptr;
  double sum_of_squares = 0;
  for (size_t at = 0; at < of_ranks.size(); at += kStepDoubles) {
    result.loss += of_ranks[at];
    sum_of_squares += of_ranks[at + 1];
    result.stop = std::max(result.stop, static_cast<int>(of_ranks[at + 2]));
    all_copied_ = all_copied_ && of_ranks[at + 3] > 0;
  }
  result.loss /= static_cast<double>(config_.accumulation_steps * world_.size);
  update(result, sum_of_squares, account.mean_scale);

  const int64_t end = now_ns();
  if (own_ == nullptr) {
    result.tokens = shape_.tokens() * config_.accumulation_steps * world_.size;
  }
  result.seconds = seconds(end - account.begin_ns);
  result.phases = {seconds(marks_.forward_ns), seconds(marks_.backward_ns),
                   seconds(end - step_begin)};
  result.exposed = exposed() - account.exposed_before;
  result.moved = moved() - account.moved_before;
  result.peak = tiers_->peak_bytes();
  result.checkpoints = std::exchange(outcomes_, {});
  return result;
}

StepResult::Exposed Runtime::exposed() const {
  return {seconds(recorder_.waited_ns(ParameterWindow::kWaitLabel)),
          seconds(recorder_.waited_ns(GradientLander::kSlotWaitLabel)),
          seconds(recorder_.waited_ns(GradientLander::kLandingWaitLabel)),
          seconds(recorder_.waited_ns(kRanksWaitLabel)),
          seconds(recorder_.waited_ns(offload::OptimizerPipeline::kWaitLabel)),
          seconds(recorder_.waited_ns(GatherOrder::kWaitLabel)),
          seconds(recorder_.waited_ns(ActivationStore::kWaitLabel)),
          seconds(recorder_.waited_ns(kSlotWaitLabel))};
}

// What updates move counts when they are submitted: the last of it moves under the next step.
LinkBytes Runtime::moved() const { return recorder_.link_bytes(Account::step) + promised(); }

LinkBytes Runtime::promised() const {
  LinkBytes bytes = updater_->promised();
  bytes[static_cast<size_t>(Activity::comm)] += window_->promised_bytes();
  if (plan_->commits()) {
    bytes[static_cast<size_t>(Activity::nvme_write)] += store_->slots()->promised_bytes();
  }
  return bytes;
}

void Runtime::check_traffic(const LinkBytes& before, const LinkBytes& planned) const {
  const LinkBytes bytes = moved() - before;
  for (size_t link = 0; link < kLinkCount; ++link) {
    if (bytes[link] == planned[link]) continue;
    throw Error(fmt::format("{} bytes went over {} where the plan says {}", bytes[link],
                            name(static_cast<Activity>(link)), planned[link]));
  }
}

LinkBytes Runtime::planned(const StepResult& result) const {
  const LinkBytes step = plan_->summary.step_traffic + result.speculation.redone_bytes;
  return result.skipped ? step - plan_->update_traffic : step;
}

// Norm, clip factor, overflow decision; then every sub-group; then commit.
void Runtime::update(StepResult& result, double sum_of_squares, double mean_scale) {
  if (!updater_->speculates()) await_commit();
  result.grad_norm = std::sqrt(sum_of_squares) * mean_scale;
  result.skipped = !std::isfinite(sum_of_squares);
  if (result.skipped) {
    updater_->skip();
    window_->restore();
  } else {
    updater_->update(clip_factor(result.grad_norm));
    window_->outdate();
    ++step_;
  }
  loss_scaler_.update(result.skipped);
  data_position_ = next_data_position_;
  if (!result.skipped && plan_->commits()) begin_commit();
  result.speculation = updater_->speculation();
}

// torch.nn.utils.clip_grad_norm_'s.
double Runtime::clip_factor(double grad_norm) const {
  if (config_.gradient_clipping <= 0) return 1.0;
  return std::min(1.0, config_.gradient_clipping / (grad_norm + 1e-6));
}

// The step's state counts as soon as its writes are through and recorded, under what comes next.
void Runtime::begin_commit() {
  store_->slots()->advance();
  commit_->run([this, payload = encode(run_state())] {
    updater_->await_writes();
    store_->slots()->make_durable(payload);
  });
  if (!config_.overlap) commit_->synchronize();
}

// Nobody writes over the generation before until all ranks have this one. Once a step, at the same
// place on all of them: before its first update.
void Runtime::await_commit() {
  if (!plan_->commits()) return;
  await_slot();
  {
    const WaitScope wait(recorder_, {StateKind::master, -1, offload::OptimizerPipeline::kWaitLabel},
                         "driver");
    try {
      commit_->synchronize();
    } catch (...) {
      updater_->settle();  // where it was the update that failed, it knows the cause
      throw;
    }
  }
  of_all_ranks(std::array{0.0});
}

}  // namespace strata::engine
