#include "tests/engine/golden_bounds.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

namespace strata::testing_support {
namespace {

constexpr double kFp32Roundoff = 0x1p-24;
constexpr double kBf16Roundoff = 0x1p-8;
constexpr double kFp16Roundoff = 0x1p-11;

double unit_roundoff(DType dtype) {
  if (dtype == DType::bf16) return kBf16Roundoff;
  return dtype == DType::fp16 ? kFp16Roundoff : kFp32Roundoff;
}

// Ops on the way through each kind of unit.
constexpr double kEmbeddingOps = 1;
constexpr double kBlockOps = 8;  // ln_1, c_attn, attention, c_proj, ln_2, c_fc, gelu, c_proj
constexpr double kHeadOps = 2;   // ln_f, logits

double forward_ops() {
  return kEmbeddingOps + kBlockOps * static_cast<double>(golden_inputs().model.n_layer) + kHeadOps;
}

// Ops of backward from the loss down to the parameter's unit.
double backward_ops(const std::string& parameter) {
  const std::string block = "transformer.h.";
  const auto layers = static_cast<double>(golden_inputs().model.n_layer);
  double ops = 1 + kHeadOps;  // the cross-entropy's gradient first
  if (parameter.starts_with(block)) {
    ops += kBlockOps * (layers - std::stod(parameter.substr(block.size())));
  } else if (!parameter.starts_with("transformer.ln_f")) {
    ops += kBlockOps * layers + kEmbeddingOps;
  }
  return ops;
}

// Terms of the longest sum: over channels, the vocabulary, or a batch's rows.
double longest_sum() {
  const models::Gpt2Config& model = golden_inputs().model;
  return static_cast<double>(std::max(
      {4 * model.n_embd, model.vocab_size, golden_inputs().batches.front().shape.tokens()}));
}

double longest_dimension(const std::string& quantity) {
  if (quantity == "loss") return 1;
  if (quantity == "logits") return static_cast<double>(golden_inputs().model.vocab_size);
  const std::string parameter = quantity.substr(std::string("grad.").size());
  const std::vector<int64_t> shape = golden_inputs().file.shape("weight." + parameter);
  return static_cast<double>(*std::max_element(shape.begin(), shape.end()));
}

double norm(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum);
}

}  // namespace

double largest_magnitude(const std::vector<double>& values) {
  double largest = 0;
  for (const double value : values) largest = std::max(largest, std::abs(value));
  return largest;
}

double largest_error(const std::vector<double>& values, const std::vector<double>& truth) {
  if (values.size() != truth.size()) return std::numeric_limits<double>::infinity();
  double largest = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double error = std::abs(values[i] - truth[i]);
    if (!std::isfinite(error)) return std::numeric_limits<double>::infinity();
    largest = std::max(largest, error);
  }
  return largest;
}

Rounding::Rounding(DType dtype, const Quantities& truth) {
  const double roundoff = unit_roundoff(dtype);
  per_op_ = std::sqrt((roundoff * roundoff + longest_sum() * kFp32Roundoff * kFp32Roundoff) / 3);
  const auto rows = static_cast<double>(golden_inputs().batches.front().shape.tokens());
  loss_sigma_ = sigma("logits") * largest_magnitude(truth.at("logits")) * std::sqrt(2 / rows) /
                truth.at("loss").front();
}

double Rounding::sigma_after(double depth) const { return per_op_ * std::sqrt(depth); }

double Rounding::sigma(const std::string& quantity) const {
  if (quantity == "loss") return loss_sigma_;
  if (quantity == "logits") return sigma_after(forward_ops());
  return sigma_after(forward_ops() + backward_ops(quantity.substr(std::string("grad.").size())));
}

double Rounding::sigma_of_gradients() const { return sigma("grad.transformer.wte.weight"); }

std::vector<Deviation> deviations(const Quantities& measured, const Quantities& truth,
                                  const Rounding& rounding) {
  std::vector<Deviation> result;
  for (const auto& [quantity, values] : truth) {
    result.push_back({quantity,
                      largest_error(measured.at(quantity), values) / largest_magnitude(values),
                      kSigmas * rounding.sigma(quantity)});
  }
  return result;
}

TrainingCurve golden_curve(const SafetensorsFixture& results) {
  return {results.values("true.losses"), results.values("true.grad_norms")};
}

std::vector<Deviation> training_deviations(const std::function<StepResult(size_t)>& step,
                                           const TrainingCurve& truth, const Rounding& rounding) {
  std::vector<Deviation> steps;
  double moved = 0;  // lr * sum of |g_j|: how far the loss may have moved
  for (size_t k = 0; k < truth.losses.size(); ++k) {
    const StepResult result = step(k);
    const double loss = truth.losses[k], norm = truth.grad_norms[k];
    const double sigma = rounding.sigma("loss") + rounding.sigma_of_gradients() * moved / loss;
    steps.push_back({"loss of step " + std::to_string(k),
                     largest_error({result.loss}, {loss}) / loss, kSigmas * sigma});
    steps.push_back({"gradient norm of step " + std::to_string(k),
                     largest_error({result.grad_norm}, {norm}) / norm,
                     kSigmas * rounding.sigma_of_gradients()});
    moved += golden_inputs().optimizer.lr * norm;
  }
  return steps;
}

Deviation worst(const std::vector<Deviation>& deviations) {
  return *std::max_element(
      deviations.begin(), deviations.end(),
      [](const Deviation& a, const Deviation& b) { return a.ratio() < b.ratio(); });
}

void print(const Deviation& deviation) {
  std::printf("  %-44s %.1e / %.1e = %.3f\n", deviation.quantity.c_str(), deviation.error,
              deviation.bound, deviation.ratio());
}

void Projection::add(const Batch& batch, const Rounding& rounding) {
  double spread = 0;
  for (const auto& [quantity, truth] : batch.truth) {
    const double unit = 1 / norm(truth);
    const auto& deviated = batch.deviated.at(quantity);
    const auto& clean = batch.clean.at(quantity);
    const auto& planted = batch.planted.at(quantity);
    double squares = 0;
    for (size_t i = 0; i < truth.size(); ++i) {
      const double deviation = (deviated[i] - truth[i]) * unit;
      squares += deviation * deviation;
      clean_ += deviation * (clean[i] - truth[i]) * unit;
      planted_ += deviation * (planted[i] - truth[i]) * unit;
    }
    squares_ += squares;
    spread +=
        std::sqrt(squares) * rounding.sigma(quantity) / std::sqrt(longest_dimension(quantity));
  }
  variance_ += spread * spread;
}

double Projection::sigma() const { return std::sqrt(variance_) / squares_; }

}  // namespace strata::testing_support
