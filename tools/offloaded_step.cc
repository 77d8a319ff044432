#include "tools/offloaded_step.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "strata/grain.h"

namespace strata::tools {
namespace {

constexpr OptimizerKind kKind = OptimizerKind::adamw;
constexpr double kClippedNorm = 1.0;

// Of a step late in training, when moments are no longer biased. Weights end where the step along a
// constant gradient and their decay balance, at most 1 / weight_decay: ordinary values.
ops::OptimizerScalars scalars(double grad_scale) {
  return {.kind = kKind, .lr = 1e-3, .weight_decay = 0.1, .grad_scale = grad_scale};
}

}  // namespace

OffloadedStep::OffloadedStep(int64_t numel, DType dtype)
    : numel_(numel),
      dtype_(dtype),
      state_(kKind, numel, {dtype, dtype}),
      landed_(numel, size_bytes(dtype)),
      wide_(numel, sizeof(float)),
      grain_sums_(static_cast<size_t>(numel / kGrainNumel)) {}

uint64_t OffloadedStep::bytes(int64_t numel, DType dtype) {
  return TrainingState::bytes(kKind, numel, {dtype, dtype}) +
         static_cast<uint64_t>(numel) * (size_bytes(dtype) + sizeof(float));
}

double OffloadedStep::clip_factor() const {
  return std::min(1.0, kClippedNorm / (std::sqrt(sum_of_squares_) + 1e-6));
}

std::vector<StepPass> OffloadedStep::fused() {
  const size_t element = size_bytes(dtype_);
  const auto land = [this] {
    const ops::OptimizerSpans state = state_.optimizer_spans();
    ops::land_gradient({.dst = landed_.as<void>(),
                        .dst_dtype = dtype_,
                        .src = state.grad,
                        .src_dtype = dtype_,
                        .numel = numel_,
                        .grain_sum_of_squares = grain_sums_.data()});
    sum_of_squares_ = std::accumulate(grain_sums_.begin(), grain_sums_.end(), 0.0);
  };
  const auto update = [this] {
    ops::OptimizerSpans spans = state_.optimizer_spans();
    spans.grad = landed_.as<void>();
    ops::optimizer_update(scalars(clip_factor()), spans);
  };
  return {{"land", 2 * element, land}, {"update", 6 * sizeof(float) + 2 * element, update}};
}

std::vector<StepPass> OffloadedStep::chain(const ChainStores& stores) {
  const size_t element = size_bytes(dtype_);
  const auto widen = [this, stores] {
    widen_gradient({wide_.as<float>(), state_.optimizer_spans().grad, dtype_, numel_},
                   stores.widen);
  };
  const auto norm = [this] {
    sum_of_squares_ = sum_of_squares(wide_.as<float>(), numel_, grain_sums_.data());
  };
  const auto scale = [this] {
    scale_gradient(wide_.as<float>(), numel_, static_cast<float>(clip_factor()));
  };
  const auto update = [this] {
    ops::OptimizerSpans spans = state_.optimizer_spans();
    spans.grad = wide_.as<float>();
    update_state(scalars(1), spans);
  };
  const auto narrow = [this, stores] {
    const ops::OptimizerSpans spans = state_.optimizer_spans();
    narrow_parameter({spans.param, spans.master, dtype_, numel_}, stores.narrow);
  };
  return {{"widen", element + sizeof(float), widen},
          {"norm", sizeof(float), norm},
          {"scale", 2 * sizeof(float), scale},
          {"AdamW", 7 * sizeof(float), update},
          {"narrow", sizeof(float) + element, narrow}};
}

}  // namespace strata::tools
