// Products of 16-bit matrices where fp32 alone is multiplied: widened, multiplied, rounded once.
//
// Slower than fp32 (each operand is widened again for each product) and as exact as 16-bit
// instructions, so that a bf16 or fp16 configuration trains on every machine, and with half of
// fp32's bytes.
#pragma once

#include <cstddef>
#include <memory>

#include "kernels/ops/cpu/matmul.h"

namespace strata::ops::cpu {

class WidenedMatmul final : public Matmul {
 public:
  // The product that computes `spec`.
  static MatmulSpec fp32_spec(const MatmulSpec& spec);
  // Room for the widened operands and for the fp32 product's own scratch.
  static size_t scratch_bytes(const MatmulSpec& spec, size_t fp32_scratch_bytes);

  // `spec` is of bf16 or fp16, its output of that or fp32; `fp32` computes fp32_spec(spec).
  WidenedMatmul(const MatmulSpec& spec, std::unique_ptr<Matmul> fp32);

  size_t scratch_bytes() const override;
  void run(const MatmulBuffers& buffers, int slot) override;

 private:
  struct Pieces;

  const MatmulSpec spec_;
  const std::unique_ptr<Matmul> fp32_;
};

}  // namespace strata::ops::cpu
