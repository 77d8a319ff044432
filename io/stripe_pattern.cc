#include "io/stripe_pattern.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "strata/error.h"

namespace strata::io {
namespace {

constexpr double kFinestWeight = 8;

std::vector<uint32_t> without_common_divisors(std::span<const uint32_t> weights) {
  uint32_t divisor = 0;
  for (const uint32_t weight : weights) {
    if (weight < 1 || weight > StripePattern::kMaxWeight) {
      throw ConfigError(
          fmt::format("a path's weight is {}: use 1 to {}", weight, StripePattern::kMaxWeight));
    }
    divisor = std::gcd(divisor, weight);
  }
  std::vector<uint32_t> reduced;
  for (const uint32_t weight : weights) reduced.push_back(weight / divisor);
  return reduced;
}

}  // namespace

StripePattern::StripePattern(std::span<const uint32_t> weights, uint64_t block_bytes)
    : weights_(without_common_divisors(weights)), block_bytes_(block_bytes) {
  if (weights_.empty() || block_bytes_ == 0) {
    throw ConfigError("striping takes at least one path and blocks of at least a byte");
  }

  // Each block goes to the file that is furthest behind its due.
  const auto blocks = std::accumulate(weights_.begin(), weights_.end(), int64_t{0});
  std::vector<int64_t> due(weights_.size(), 0);
  std::vector<uint32_t> dealt(weights_.size(), 0);
  for (int64_t i = 0; i < blocks; ++i) {
    for (size_t file = 0; file < due.size(); ++file) due[file] += weights_[file];
    const auto next = static_cast<size_t>(std::max_element(due.begin(), due.end()) - due.begin());
    due[next] -= blocks;
    turn_.push_back({static_cast<uint32_t>(next), dealt[next]++});
  }
}

double StripePattern::share(size_t file) const {
  return static_cast<double>(weights_[file]) / static_cast<double>(turn_.size());
}

StripePattern::Place StripePattern::locate(uint64_t offset) const {
  const uint64_t block = offset / block_bytes_;
  const uint64_t inside = offset % block_bytes_;
  const Block& dealt = turn_[block % turn_.size()];
  const uint64_t before = block / turn_.size() * weights_[dealt.file] + dealt.index;
  return {dealt.file, before * block_bytes_ + inside, block_bytes_ - inside};
}

uint64_t StripePattern::file_bytes(size_t file, uint64_t bytes) const {
  const uint64_t turn_bytes = turn_.size() * block_bytes_;
  uint64_t sum = bytes / turn_bytes * weights_[file] * block_bytes_;
  uint64_t rest = bytes % turn_bytes;
  for (const Block& block : turn_) {
    const uint64_t part = std::min(rest, block_bytes_);
    if (block.file == file) sum += part;
    rest -= part;
  }
  return sum;
}

std::vector<uint32_t> weights_for(std::span<const double> bandwidths) {
  const double fastest = *std::max_element(bandwidths.begin(), bandwidths.end());
  std::vector<uint32_t> weights;
  for (const double bandwidth : bandwidths) {
    weights.push_back(
        static_cast<uint32_t>(std::max(1.0, std::round(kFinestWeight * bandwidth / fastest))));
  }
  return weights;
}

}  // namespace strata::io
