// The caller's data: what is refused of them, and their way to the device.
#include <fmt/format.h>

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "engine/plan/batch_views.h"
#include "engine/runtime/runtime.h"
#include "kernels/ops/optimizer_ops.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

float largest_finite(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return 0x1.fep127f;
    case DType::fp16:
      return 65504.0f;
    default:
      return FLT_MAX;
  }
}

void check_count(const char* what, size_t given, int64_t expected) {
  if (given == static_cast<size_t>(expected)) return;
  throw ConfigError(
      fmt::format("a micro-batch of this model has {} {} and was given {}", expected, what, given));
}

void check_ids(const char* what, std::span<const int32_t> ids, int32_t least, int64_t limit) {
  const auto bad =
      std::find_if(ids.begin(), ids.end(), [=](int32_t id) { return id < least || id >= limit; });
  if (bad == ids.end()) return;
  throw ConfigError(
      fmt::format("{} {} is out of range: use {} to {}", what, *bad, least, limit - 1));
}

void check_features(std::span<const float> features, DType dtype) {
  const float largest = largest_finite(dtype);
  const auto fits = [largest](float value) { return std::abs(value) <= largest; };
  const auto bad = std::find_if_not(features.begin(), features.end(), fits);
  if (bad == features.end()) return;
  throw ConfigError(fmt::format("features[{}] is {}: features must be finite in {}",
                                bad - features.begin(), *bad, name(dtype)));
}

}  // namespace

void Runtime::check_batch(const Batch& batch) const {
  if (batch.shape != shape_) {
    throw ConfigError(
        fmt::format("a micro-batch is {} rows of {}, and one of {} rows of {} was given",
                    shape_.batch, shape_.sequence, batch.shape.batch, batch.shape.sequence));
  }
  const int64_t count = shape_.tokens();
  const int64_t classes = model_.target_classes();
  check_count("tokens", batch.tokens.size(), model_.vocab_size > 0 ? count : 0);
  check_count("targets", batch.targets.size(), classes > 0 ? count : 0);
  check_count("features", batch.features.size(), count * model_.features);
  check_ids("token", batch.tokens, 0, model_.vocab_size);
  check_ids("target", batch.targets, -1, classes);
  check_features(batch.features, config_.dtype);
}

void Runtime::check_batches(std::span<const Batch> batches, size_t expected) const {
  if (batches.size() != expected) {
    throw ConfigError(
        fmt::format("a step takes {} micro-batches and was given {}", expected, batches.size()));
  }
  for (const Batch& batch : batches) check_batch(batch);
}

void Runtime::upload(std::span<const Batch> batches) {
  std::byte* staging = batch_staging_.data();
  for (const Batch& batch : batches) {
    const BatchViews staged(staging, model_, shape_, config_.dtype);
    std::copy(batch.tokens.begin(), batch.tokens.end(), staged.tokens.as<int32_t>());
    std::copy(batch.targets.begin(), batch.targets.end(), staged.targets.as<int32_t>());
    if (staged.features) {
      ops::cast(staged.features.data, config_.dtype, batch.features.data(), DType::fp32,
                staged.features.numel());
    }
    staging += staged.bytes;
  }
  copy_in_->copy(batches_.data(), batch_staging_.data(), batches.size() * plan_->batch_bytes,
                 CopyDirection::host_to_device, {StateKind::other, -1, "batches"});
  compute_->wait(copy_in_->record(), {StateKind::other, -1, "compute waits for batches"});
}

}  // namespace strata::engine
