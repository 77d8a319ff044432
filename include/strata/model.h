// A model: layers in order, and the models that come with Strata.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "strata/layer.h"

namespace strata {

// Immutable; layers run in order, the last one computes the loss.
struct Model {
  std::string description;   // one line for people
  std::string config = {};   // as JSON, for checkpoints to keep; empty: it has none
  int64_t vocab_size = 0;    // token ids are below this; 0: it takes no tokens
  int64_t features = 0;      // columns F of Batch::features; 0: it takes none
  int64_t classes = 0;       // targets are below this; 0: below vocab_size
  int64_t max_sequence = 0;  // of a row; 0: any
  std::vector<std::shared_ptr<const Layer>> layers = {};
  // The same model with its wide layers in so many tiles, for Config::tiles; empty: it has none.
  std::function<Model(int64_t tiles)> tiled = {};

  // What targets are below, and the columns V of scores. 0: it takes no targets (what it should
  // predict may be among the features).
  int64_t target_classes() const { return classes > 0 ? classes : vocab_size; }
  int64_t num_parameters() const;
};

// Parameters without compute: a unit of a model whose caller computes
// (Engine::Options::own_compute).
std::shared_ptr<const Layer> parameter_unit(std::string name, std::vector<Parameter> parameters);

namespace models {

// Hugging Face's config.json names, model_type "gpt2".
struct Gpt2Config {
  int64_t vocab_size = 50257;
  int64_t n_positions = 1024;
  int64_t n_embd = 768;
  int64_t n_layer = 12;
  int64_t n_head = 12;
  int64_t n_inner = 0;  // 0: 4 * n_embd
  float layer_norm_epsilon = 1e-5f;
  float initializer_range = 0.02f;
  // Dropout in training, in [0, 1): of the embeddings' sum, of what attention and MLP add to the
  // residual, of attention probabilities.
  double embd_pdrop = 0;
  double resid_pdrop = 0;
  double attn_pdrop = 0;

  // Throws ConfigError naming file, key and what to change; see docs/configuration.md.
  static Gpt2Config from_file(const std::string& path);
  static Gpt2Config from_json(const std::string& text, const std::string& source);
  // What from_json() makes the same of.
  std::string to_json() const;
};

// GPT-2 with tied embeddings; units: embedding, blocks, head. Parameter names are Hugging Face's.
//
// With more than one tile a block is two layers, attention and MLP, each a unit for its layer norm
// and as many for tiles: of heads (no more than there are), of channels inside the MLP. Embedding
// and head are tiles of the vocabulary. A tile's parameter is a slice with ".tile" and its number,
// from 0, behind the name.
Model gpt2(const Gpt2Config& config, int64_t tiles = 1);

}  // namespace models
}  // namespace strata
