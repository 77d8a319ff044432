// How one address space is dealt to several files, in blocks of one size, in a repeating pattern.
//
// In each turn of the pattern a file gets as many blocks as its weight, spread as evenly as can be,
// so that any long run of bytes takes all files by their weights. What a file gets lies in it
// without gaps, in order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace strata::io {

class StripePattern {
 public:
  // Where a byte lies, and how many from it on are in the same block.
  struct Place {
    size_t file = 0;
    uint64_t offset = 0;
    uint64_t bytes = 0;
  };
  static constexpr uint32_t kMaxWeight = 1024;

  // A weight a file, 1 to kMaxWeight; only their ratios count. Throws ConfigError for others.
  StripePattern(std::span<const uint32_t> weights, uint64_t block_bytes);

  // Without common divisors.
  const std::vector<uint32_t>& weights() const { return weights_; }
  // The part of all bytes that goes to a file.
  double share(size_t file) const;
  Place locate(uint64_t offset) const;
  // Of an address space of `bytes`, what lies in this file.
  uint64_t file_bytes(size_t file, uint64_t bytes) const;

 private:
  // A block of the pattern: its file, and which of the turn's blocks of that file it is.
  struct Block {
    uint32_t file = 0;
    uint32_t index = 0;
  };
  std::vector<uint32_t> weights_;
  uint64_t block_bytes_;
  std::vector<Block> turn_;
};

// Weights in the ratios of these bandwidths, the fastest at most 8: measurements are no better.
std::vector<uint32_t> weights_for(std::span<const double> bandwidths);

}  // namespace strata::io
