// What a run does with its model between steps: losses and scores, without changing anything.
#include <fmt/format.h>

#include <algorithm>

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

double Runtime::evaluate(const Batch& batch) {
  const LinkBytes moved_before = moved();
  upload({&batch, 1});
  execute(plan_->evaluate, /*training=*/false);
  const double loss = read_losses(1);
  check_traffic(moved_before, plan_->summary.evaluate_traffic);
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

TensorView Runtime::scores_view() const {
  const Action last{Action::Op::forward, static_cast<int>(model_.layers.size()) - 1};
  const TensorView scores = model_.layers.back()->scores(layer_context(last, {}));
  const Shape expected = {shape_.tokens(), model_.target_classes()};
  if (!scores || expected[1] == 0) throw ConfigError("the model's last layer gives no scores");
  if (scores.shape != expected || scores.dtype != config_.dtype) {
    throw ConfigError(fmt::format("Layer::scores of '{}' should give a matrix of {} by {} in {}",
                                  model_.layers.back()->name(), expected[0], expected[1],
                                  name(config_.dtype)));
  }
  return scores;
}

// A row at a time: that is what the plan has room for, however many classes there are.
std::vector<float> Runtime::read_scores(int64_t first_row, int64_t rows) {
  const TensorView scores = scores_view();
  const int64_t columns = scores.shape[1];
  const size_t row_bytes = static_cast<size_t>(columns) * size_bytes(scores.dtype);
  std::vector<float> values(static_cast<size_t>(rows * columns));
  for (int64_t row = 0; row < rows; ++row) {
    copy_out_->copy(scores_readback_.data(),
                    scores.as<std::byte>() + static_cast<size_t>(first_row + row) * row_bytes,
                    row_bytes, CopyDirection::device_to_host, {StateKind::other, -1, "scores"});
    copy_out_->synchronize();
    ops::cast(values.data() + row * columns, DType::fp32, scores_readback_.data(), scores.dtype,
              columns);
  }
  return values;
}

std::vector<float> Runtime::scores(const Batch& batch) {
  require_layers_compute();
  check_batch(batch);
  settle();
  evaluate(batch);
  return read_scores(0, shape_.tokens());
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
  check_batch(batch);
  settle();
  evaluate(batch);
  return read_scores(static_cast<int64_t>(tokens.size()) - 1, 1);
}

}  // namespace strata::engine
