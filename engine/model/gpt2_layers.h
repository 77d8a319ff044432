// GPT-2's layers (Radford et al. 2019), with Hugging Face's parameter names and shapes.
//
// What a layer saves for backward is what is dear to compute: results of matrix products and of
// attention, 9 values for each of the B*T*C of a block's output. Layer norms and GELU are computed
// a second time into the workspace: their inputs are saved anyway, they take no matrix product, and
// their outputs would be 6 more. What dropout dropped is not saved: it is drawn again.
#pragma once

#include <string>
#include <vector>

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

// h = x + dropout(attention(ln_1(x))); y = h + dropout(mlp(ln_2(h))).
class Gpt2Block final : public Layer {
 public:
  Gpt2Block(const Gpt2Config& config, int64_t index) : config_(config), index_(index) {}

  std::string name() const override { return "transformer.h." + std::to_string(index_); }
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
