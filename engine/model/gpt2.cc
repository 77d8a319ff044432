#include <fmt/format.h>

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

}  // namespace

Model gpt2(const Gpt2Config& config) {
  Model model;
  model.vocab_size = config.vocab_size;
  model.max_sequence = config.n_positions;
  model.layers.push_back(std::make_shared<Gpt2Embedding>(config));
  for (int64_t i = 0; i < config.n_layer; ++i) {
    model.layers.push_back(std::make_shared<Gpt2Block>(config, i));
  }
  model.layers.push_back(std::make_shared<Gpt2Head>(config));
  model.description = fmt::format(
      "GPT-2, {} layers, {} channels, {} heads, vocabulary {}, layer norm epsilon {}{}, {:.1f} M "
      "parameters",
      config.n_layer, config.n_embd, config.n_head, config.vocab_size, config.layer_norm_epsilon,
      dropout_words(config), static_cast<double>(model.num_parameters()) / 1e6);
  return model;
}

}  // namespace models
}  // namespace strata
