// Dropout's mask an element at a time, from its definition in kernels/ops/dropout.h.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/ops/dropout.h"
#include "kernels/ops/random.h"

namespace strata::ops {

class DropoutReference {
 public:
  explicit DropoutReference(const DropoutSite& site)
      : threshold_(std::lround(site.probability * 65536)) {
    const RandomKey& key = site.key;
    const auto derived = Philox{key.seed}(
        key.step, (uint64_t{key.micro_batch} << 32) + (uint64_t{key.layer} << 8) + site.site);
    key_ = (uint64_t{derived[1]} << 32) + derived[0];
    stream_ = (uint64_t{derived[3]} << 32) + derived[2];
  }

  // What an activation is multiplied by.
  double of_line(int64_t i) const { return factor(i / 128 * 16 + i % 16, 0, i / 16 % 8); }
  // What an attention probability is multiplied by.
  double of_attention(int64_t batch, int64_t head, int64_t query, int64_t key) const {
    const auto own = (static_cast<uint64_t>(batch) << 32) + static_cast<uint64_t>(head);
    return factor((query / 8 << 32) + key, own, query % 8);
  }

 private:
  double factor(int64_t call, uint64_t stream, int64_t piece) const {
    const auto words = Philox{key_}(static_cast<uint64_t>(call), stream_ + stream);
    const uint32_t word = words[static_cast<size_t>(piece / 2)];
    const int64_t bits = piece % 2 == 0 ? word % 65536 : word / 65536;
    return bits < threshold_ ? 0 : 65536.0 / static_cast<double>(65536 - threshold_);
  }

  int64_t threshold_;
  uint64_t key_, stream_;
};

}  // namespace strata::ops
