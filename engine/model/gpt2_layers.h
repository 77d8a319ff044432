// GPT-2's layers (Radford et al. 2019), with Hugging Face's parameter names and shapes.
#pragma once

#include <string>
#include <vector>

#include "engine/model/gpt2_branches.h"
#include "strata/dropout.h"
#include "strata/layer.h"
#include "strata/model.h"

namespace strata::models {

// The part of the vocabulary that a layer computes with: all of it, or a tile's.
struct VocabShare {
  int64_t tile = 0, tiles = 1;
  int64_t first_token = 0, tokens = 0;

  static VocabShare of_tile(const Gpt2Config& config, int64_t tile, int64_t tiles);
  bool is_whole() const { return tiles == 1; }
  bool is_last() const { return tile + 1 == tiles; }
  // What a layer with this share is called.
  std::string named(const std::string& whole) const;
};
// The share's rows of the table that embedding and head have in common.
Parameter token_table(const Gpt2Config& config, const VocabShare& share);

// Token and position embeddings, with dropout of their sum: for all tokens, or as one of the tiles
// that add up to that, of which the first adds the positions. Owns the token table that the head
// shares.
class Gpt2Embedding final : public Layer {
 public:
  explicit Gpt2Embedding(const Gpt2Config& config, int64_t tile = 0, int64_t tiles = 1)
      : config_(config), share_(VocabShare::of_tile(config, tile, tiles)) {}

  std::string name() const override { return share_.named("transformer.embedding"); }
  std::vector<Parameter> parameters() const override;
  int64_t output_channels() const override { return config_.n_embd; }
  bool is_further_tile() const override { return share_.tile > 0; }
  LayerFootprint footprint(const ops::LayerOps& ops, const BatchShape& batch,
                           DType dtype) const override;
  void forward(const LayerForward& context) const override;
  void backward(const LayerBackward& context) const override;

 private:
  ops::DropoutSite site(const RandomKey& random) const;
  bool adds_positions() const { return share_.tile == 0; }

  const Gpt2Config config_;
  const VocabShare share_;
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
//
// A tile has the logits of its share of the vocabulary. What tiles write together are the
// statistics that the loss and each logit's gradient follow from; the last one makes the loss. The
// first owns the layer norm.
class Gpt2Head final : public Layer {
 public:
  explicit Gpt2Head(const Gpt2Config& config, int64_t tile = 0, int64_t tiles = 1)
      : config_(config), share_(VocabShare::of_tile(config, tile, tiles)) {}

  std::string name() const override { return share_.named("transformer.head"); }
  std::vector<Parameter> parameters() const override;
  std::vector<std::string> shared_parameters() const override;
  int64_t output_channels() const override;
  bool is_further_tile() const override { return share_.tile > 0; }
  LayerFootprint footprint(const ops::LayerOps& ops, const BatchShape& batch,
                           DType dtype) const override;
  void forward(const LayerForward& context) const override;
  TensorView scores(const LayerContext& context) const override;
  void backward(const LayerBackward& context) const override;

 private:
  void add_to_loss(const LayerForward& context, const TensorView& logits) const;

  const Gpt2Config config_;
  const VocabShare share_;
};

}  // namespace strata::models
