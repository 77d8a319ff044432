#include <fmt/format.h>

#include <algorithm>

#include "engine/model/gpt2_layers.h"
#include "strata/model.h"

namespace strata {

int64_t Model::num_parameters() const {
  int64_t count = 0;
  for (const auto& layer : layers) {
    for (const Parameter& parameter : layer->parameters()) count += parameter.shape.numel();
  }
  return count;
}

namespace models {
namespace {

// Exact, since ranks compare descriptions.
std::string dropout_words(const Gpt2Config& config) {
  if (config.embd_pdrop == 0 && config.resid_pdrop == 0 && config.attn_pdrop == 0) return "";
  return fmt::format(", dropout {} of embeddings, {} of residuals, {} of attention",
                     config.embd_pdrop, config.resid_pdrop, config.attn_pdrop);
}

void add_tiles(Model& model, const Gpt2Config& config, int64_t block, Gpt2Branch branch,
               int64_t tiles) {
  model.layers.push_back(std::make_shared<Gpt2Residual>(config, block, branch));
  for (int64_t tile = 0; tile < tiles; ++tile) {
    model.layers.push_back(std::make_shared<Gpt2Tile>(config, block, branch, tile, tiles));
  }
}

}  // namespace

Model gpt2(const Gpt2Config& config, int64_t tiles) {
  Model model;
  model.config = config.to_json();
  model.vocab_size = config.vocab_size;
  model.max_sequence = config.n_positions;
  model.tiled = [config](int64_t into) { return gpt2(config, into); };
  const int64_t vocab_tiles = std::min(tiles, config.vocab_size);
  for (int64_t tile = 0; tile < vocab_tiles; ++tile) {
    model.layers.push_back(std::make_shared<Gpt2Embedding>(config, tile, vocab_tiles));
  }
  for (int64_t i = 0; i < config.n_layer; ++i) {
    if (tiles == 1) {
      model.layers.push_back(std::make_shared<Gpt2Block>(config, i));
    } else {
      const int64_t inner = BranchShare::of_block(config).inner;
      add_tiles(model, config, i, Gpt2Branch::attention, std::min(tiles, config.n_head));
      add_tiles(model, config, i, Gpt2Branch::mlp, std::min(tiles, inner));
    }
  }
  for (int64_t tile = 0; tile < vocab_tiles; ++tile) {
    model.layers.push_back(std::make_shared<Gpt2Head>(config, tile, vocab_tiles));
  }
  model.description = fmt::format(
      "GPT-2, {} layers, {} channels, {} heads, vocabulary {}, layer norm epsilon {}{}{}, {:.1f} M "
      "parameters",
      config.n_layer, config.n_embd, config.n_head, config.vocab_size, config.layer_norm_epsilon,
      dropout_words(config), tiles == 1 ? "" : fmt::format(", in {} tiles", tiles),
      static_cast<double>(model.num_parameters()) / 1e6);
  return model;
}

}  // namespace models
}  // namespace strata
