// What a run does with its model between steps: losses and scores, without changing anything.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/runtime/runtime.h"
#include "kernels/ops/optimizer_ops.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

// What its mean loss is the mean over: targets that count, or all its rows without targets.
double weight_of(const Batch& batch) {
  if (batch.targets.empty()) return static_cast<double>(batch.shape.tokens());
  return static_cast<double>(std::count_if(batch.targets.begin(), batch.targets.end(),
                                           [](int32_t target) { return target >= 0; }));
}

}  // namespace

void Runtime::require_layers_compute() const {
  if (own_ == nullptr) return;
  throw ConfigError("the caller computes (Options::own_compute), losses too");
}

double Runtime::evaluate(const Batch& batch, ScoreRows* scores) {
  const LinkBytes moved_before = moved();
  LinkBytes planned = plan_->summary.evaluate_traffic;
  if (scores != nullptr) planned[static_cast<size_t>(Activity::d2h)] += score_bytes(*scores);
  upload({&batch, 1});
  execute(plan_->evaluate, /*training=*/false, scores);
  const double loss = read_losses(1);
  check_traffic(moved_before, planned);
  return loss;
}

double Runtime::evaluate(std::span<const Batch> micro_batches) {
  require_layers_compute();
  check_batches(micro_batches, micro_batches.size());
  settle();
  double sum = 0;
  double counted = 0;
  for (const Batch& batch : micro_batches) {
    const double weight = weight_of(batch);
    sum += evaluate(batch) * weight;
    counted += weight;
  }
  const auto of_ranks = of_all_ranks(std::array{sum, counted});
  double all_sum = 0;
  double all_counted = 0;
  for (size_t at = 0; at < of_ranks.size(); at += 2) {
    all_sum += of_ranks[at];
    all_counted += of_ranks[at + 1];
  }
  return all_counted == 0 ? 0.0 : all_sum / all_counted;
}

TensorView Runtime::scores_of(int unit) const {
  const Action forward{Action::Op::forward, unit};
  return model_.layers[static_cast<size_t>(unit)]->scores(layer_context(forward, {}));
}

uint64_t Runtime::score_bytes(const ScoreRows& scores) const {
  return static_cast<uint64_t>(scores.rows * model_.target_classes()) * size_bytes(config_.dtype);
}

void Runtime::check_scores() const {
  const Unit& last = plan_->layout.units().back();
  int64_t columns_left = model_.target_classes();
  for (int unit = last.first_tile; unit <= last.last_tile; ++unit) {
    const TensorView scores = scores_of(unit);
    if (!scores || model_.target_classes() == 0) {
      throw ConfigError("the model's last layer gives no scores");
    }
    const bool is_last = unit == last.last_tile;
    const Shape& shape = scores.shape;
    const bool has_columns = is_last ? shape[1] == columns_left : shape[1] <= columns_left;
    if (shape.rank != 2 || shape[0] != shape_.tokens() || !has_columns ||
        scores.dtype != config_.dtype) {
      throw ConfigError(
          fmt::format("Layer::scores of '{}' should give a matrix of {} by {}{} in {}",
                      model_.layers[static_cast<size_t>(unit)]->name(), shape_.tokens(),
                      is_last ? "" : "at most ", columns_left, name(config_.dtype)));
    }
    columns_left -= shape[1];
  }
}

// A row at a time: that is what the plan has room for, however many classes there are.
void Runtime::read_scores(int unit, ScoreRows& wanted) {
  if (unit < plan_->layout.units().back().first_tile) return;
  const TensorView scores = scores_of(unit);
  const int64_t columns = scores.shape[1];
  const size_t row_bytes = static_cast<size_t>(columns) * size_bytes(scores.dtype);
  copy_out_->wait(compute_->record(), {StateKind::other, unit, "scores wait for compute"});
  for (int64_t row = 0; row < wanted.rows; ++row) {
    copy_out_->copy(
        scores_readback_.data(),
        scores.as<std::byte>() + static_cast<size_t>(wanted.first_row + row) * row_bytes, row_bytes,
        CopyDirection::device_to_host, {StateKind::other, unit, "scores"});
    copy_out_->synchronize();
    ops::cast(wanted.values.data() + row * model_.target_classes() + wanted.columns_read,
              DType::fp32, scores_readback_.data(), scores.dtype, columns);
  }
  wanted.columns_read += columns;
}

std::vector<float> Runtime::scores(const Batch& batch, int64_t first_row, int64_t rows) {
  check_batch(batch);
  check_scores();
  settle();
  ScoreRows wanted{.first_row = first_row, .rows = rows};
  wanted.values.resize(static_cast<size_t>(rows * model_.target_classes()));
  evaluate(batch, &wanted);
  return std::move(wanted.values);
}

std::vector<float> Runtime::scores(const Batch& batch) {
  require_layers_compute();
  return scores(batch, 0, shape_.tokens());
}

std::vector<float> Runtime::next_token_scores(std::span<const int32_t> tokens) {
  require_layers_compute();
  if (model_.features > 0 || model_.vocab_size == 0) {
    throw ConfigError("the model takes features: ask for the scores of a batch of them");
  }
  if (tokens.empty() || static_cast<int64_t>(tokens.size()) > shape_.sequence) {
    throw ConfigError(
        fmt::format("scores follow 1 to {} tokens; {} were given", shape_.sequence, tokens.size()));
  }
  const auto numel = static_cast<size_t>(shape_.tokens());
  std::vector<int32_t> row(numel, 0);
  std::copy(tokens.begin(), tokens.end(), row.begin());
  const std::vector<int32_t> no_targets(numel, -1);
  const Batch batch{shape_, row, no_targets};
  return scores(batch, static_cast<int64_t>(tokens.size()) - 1, 1);
}

}  // namespace strata::engine
