// The CPU part of an offloaded optimizer step for one micro-batch on one rank, in two ways.
//
// Both start from 16-bit gradients as they arrive from the device, clip them by their norm, update
// AdamW's fp32 state and end with 16-bit parameters:
//
//   fused  land     the arrived gradients become the accumulator, their norm counted as they pass;
//          update   unscale, clip, AdamW, write back and cast in one pass
//   chain  widen, norm, scale, AdamW, narrow: a pass each, over gradients widened to fp32
//
// `fused` is what the engine runs: the kernels that its gradient lander and its optimizer call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/ops/optimizer_ops.h"
#include "strata/dtype.h"
#include "tools/bench.h"
#include "tools/bench_chain.h"
#include "tools/bench_optimizer.h"

namespace strata::tools {

// One pass over memory.
struct StepPass {
  std::string name;
  size_t bytes_per_element;  // that it reads and writes
  std::function<void()> run;
};

// Where streaming stores helped.
struct ChainStores {
  Stores widen = Stores::streaming;
  Stores narrow = Stores::streaming;
};

// Owns the memory of both ways, which work on the same training state. Passes run on the calling
// thread's team, in order; they hold on to this.
class OffloadedStep {
 public:
  // `dtype` of gradients and parameters: bf16 or fp16.
  OffloadedStep(int64_t numel, DType dtype);
  OffloadedStep(const OffloadedStep&) = delete;
  OffloadedStep& operator=(const OffloadedStep&) = delete;

  // What one takes.
  static uint64_t bytes(int64_t numel, DType dtype);

  std::vector<StepPass> fused();
  std::vector<StepPass> chain(const ChainStores& stores);

  const TrainingState& state() const { return state_; }

 private:
  // torch.nn.utils.clip_grad_norm_'s factor, as the engine's.
  double clip_factor() const;

  const int64_t numel_;
  const DType dtype_;
  const TrainingState state_;  // its gradients are the arrived ones
  const BenchMemory landed_;   // dtype
  const BenchMemory wide_;     // fp32
  std::vector<double> grain_sums_;
  double sum_of_squares_ = 0;
};

}  // namespace strata::tools
