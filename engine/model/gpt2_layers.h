// GPT-2's layers (Radford et al. 2019), with Hugging Face's parameter names and shapes.
#pragma once

#include <string>
#include <vector>

#include "engine/model/gpt2_branches.h"
#include "strata/dropout.h"
#include "strata/layer.h"
#include "strata/model.h"

namespace strata::models {

// Token and position embeddings, with dropout of their sum. Owns the token table that the head
// shares.
class Gpt2Embedding final : public Layer {
 public:
  explicit Gpt2Embedding(const Gpt2Config& config) : config_(config) {}

  std::string name() const override { return "transformer.embedding"; }
  std::vector<Parameter> parameters() const override;
  int64_t output_channels() const override { return config_.n_embd; }
  LayerFootprint footprint(const ops::LayerOps& ops, const BatchShape& batch,
                           DType dtype) const override;
  void forward(const LayerForward& context) const override;
  void backward(const LayerBackward& context) const override;

 private:
  ops::DropoutSite site(const RandomKey& random) const;

  const Gpt2Config config_;
};

// A block's parameters, in the order in which it declares them.
enum BlockParam {
  kNorm1Weight,
  kNorm1Bias,
  kQkvWeight,
  kQkvBias,
  kProjectionWeight,
  kProjectionBias,
  kNorm2Weight,
  kNorm2Bias,
  kUpWeight,
  kUpBias,
  kDownWeight,
  kDownBias,
};
std::vector<Parameter> block_parameters(const Gpt2Config& config, int64_t index);
std::string block_name(int64_t index);

// Both branches (engine/model/gpt2_branches.h): h = x + dropout(attention(ln_1(x))); y = h +
// dropout(mlp(ln_2(h))).
class Gpt2Block final : public Layer {
 public:
  Gpt2Block(const Gpt2Config& config, int64_t index) : config_(config), index_(index) {}

  std::string name() const override;
  std::vector<Parameter> parameters() const override;
  int64_t output_channels() const override { return config_.n_embd; }
  LayerFootprint footprint(const ops::LayerOps& ops, const BatchShape& batch,
                           DType dtype) const override;
  void forward(const LayerForward& context) const override;
  void backward(const LayerBackward& context) const override;

 private:
  const Gpt2Config config_;
  const int64_t index_;
};

// A block's branch in tiles. The first holds the layer norm that all use, and is the residual.
enum class Gpt2Branch : uint8_t { attention, mlp };

class Gpt2Residual final : public Layer {
 public:
  Gpt2Residual(const Gpt2Config& config, int64_t block, Gpt2Branch branch)
      : config_(config), block_(block), branch_(branch) {}

  std::string name() const override;
  std::vector<Parameter> parameters() const override;
  int64_t output_channels() const override { return config_.n_embd; }
  LayerFootprint footprint(const ops::LayerOps&, const BatchShape&, DType) const override {
    return {};
  }
  void forward(const LayerForward& context) const override;
  void backward(const LayerBackward& context) const override;

 private:
  const Gpt2Config config_;
  const int64_t block_;
  const Gpt2Branch branch_;
};

// One share of the branch's heads, or of its inner channels. The first also adds the output's bias.
class Gpt2Tile final : public Layer {
 public:
  Gpt2Tile(const Gpt2Config& config, int64_t block, Gpt2Branch branch, int64_t tile, int64_t tiles);

  std::string name() const override;
  std::vector<Parameter> parameters() const override;
  std::vector<std::string> shared_parameters() const override;
  int64_t output_channels() const override { return config_.n_embd; }
  bool is_further_tile() const override { return true; }
  LayerFootprint footprint(const ops::LayerOps& ops, const BatchShape& batch,
                           DType dtype) const override;
  void forward(const LayerForward& context) const override;
  void backward(const LayerBackward& context) const override;

 private:
  bool is_attention() const { return branch_ == Gpt2Branch::attention; }
  BranchParams params() const;

  const Gpt2Config config_;
  const int64_t block_;
  const Gpt2Branch branch_;
  const int64_t tile_;
  const BranchShare share_;
};

// Final layer norm, logits = x . wte^T, mean cross-entropy. The saved bytes begin with the logits
// (B*T, V); a training forward replaces them by their gradient.
class Gpt2Head final : public Layer {
 public:
  explicit Gpt2Head(const Gpt2Config& config) : config_(config) {}

  std::string name() const override { return "transformer.head"; }
  std::vector<Parameter> parameters() const override;
  std::vector<std::string> shared_parameters() const override;
  int64_t output_channels() const override { return 0; }
  LayerFootprint footprint(const ops::LayerOps& ops, const BatchShape& batch,
                           DType dtype) const override;
  void forward(const LayerForward& context) const override;
  TensorView scores(const LayerContext& context) const override;
  void backward(const LayerBackward& context) const override;

 private:
  const Gpt2Config config_;
};

}  // namespace strata::models
