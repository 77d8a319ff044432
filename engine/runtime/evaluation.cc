// What a run does with its model between steps: losses and scores, without changing anything.
#include <fmt/format.h>

#include <algorithm>

#include "engine/runtime/runtime.h"
#include "kernels/ops/optimizer_ops.h"
#include "strata/error.h"

namespace strata::engine {

double Runtime::evaluate(const Batch& batch) {
  const LinkBytes moved_before = moved();
  upload_tokens({&batch, 1});
  execute(plan_->evaluate, /*training=*/false);
  const double loss = read_losses(1);
  check_traffic(moved_before, plan_->summary.evaluate_traffic);
  return loss;
}

double Runtime::evaluate(std::span<const Batch> micro_batches) {
  if (own_ != nullptr) {
    throw ConfigError("the caller computes (Options::own_compute), losses too");
  }
  check_batches(micro_batches, micro_batches.size());
  settle();
  double sum = 0;
  double counted = 0;
  for (const Batch& batch : micro_batches) {
    const auto targets = static_cast<double>(std::count_if(
        batch.targets.begin(), batch.targets.end(), [](int32_t target) { return target >= 0; }));
    sum += evaluate(batch) * targets;
    counted += targets;
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

std::vector<float> Runtime::next_token_scores(std::span<const int32_t> tokens) {
  if (own_ != nullptr) {
    throw ConfigError("the caller computes (Options::own_compute), scores too");
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
  check_batches({&batch, 1}, 1);
  settle();
  evaluate(batch);

  const Action last{Action::Op::forward, static_cast<int>(model_.layers.size()) - 1};
  const TensorView scores = model_.layers.back()->scores(layer_context(last, {}));
  if (!scores) throw ConfigError("the model's last layer gives no scores");
  const size_t row_bytes =
      static_cast<size_t>(model_.vocab_size) * size_bytes(plan_->state.param_dtype);
  copy_out_->copy(scores_readback_.data(), scores.as<std::byte>() + (tokens.size() - 1) * row_bytes,
                  row_bytes, CopyDirection::device_to_host, {StateKind::other, -1, "scores"});
  copy_out_->synchronize();
  std::vector<float> values(static_cast<size_t>(model_.vocab_size));
  ops::cast(values.data(), DType::fp32, scores_readback_.data(), plan_->state.param_dtype,
            model_.vocab_size);
  return values;
}

}  // namespace strata::engine
