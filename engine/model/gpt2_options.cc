#include "engine/model/gpt2_options.h"

#include <fmt/format.h>

namespace strata::models {
namespace {

using namespace options;  // NOLINT: the table's own vocabulary

constexpr IntegerRange kSize = {1, 1 << 30};

// A string of which one value is there.
Value the_only(const std::string& word) {
  return {Json(word).dump(), Json(word).dump(), [word](const Json& json) -> std::string {
            if (json == word) return "";
            if (!json.is_string()) return must_be(Json(word).dump(), json);
            return fmt::format("is {}, which is not there yet: use {}", json.dump(),
                               Json(word).dump());
          }};
}

Option dropout(const std::string& key, double& out, const std::string& of_what) {
  return honoured(key, number(out, {.min = 0, .max = 1, .below_max = true}),
                  "Dropout in training " + of_what + ", to the nearest 1/65536.",
                  "Not given counts as 0, where Hugging Face's default is 0.1.");
}

void add_keys_without_effect(std::vector<Option>& rows) {
  const std::string generation = "It is about generating text.";
  for (const char* key :
       {"bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "task_specific_params"}) {
    rows.push_back(no_effect(key, Type::anything, generation));
  }
  const std::string heads = "It is about heads other than the language model's.";
  for (const char* key :
       {"summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels",
        "summary_first_dropout", "id2label", "label2id", "num_labels", "problem_type"}) {
    rows.push_back(no_effect(key, Type::anything, heads));
  }
  const std::string library = "It is about Hugging Face's library.";
  for (const char* key : {"architectures", "_name_or_path", "transformers_version", "torch_dtype",
                          "dtype", "return_dict", "output_attentions", "output_hidden_states",
                          "gradient_checkpointing", "attn_implementation"}) {
    rows.push_back(no_effect(key, Type::anything, library));
  }
  rows.push_back(
      no_effect("reorder_and_upcast_attn", Type::boolean, "Attention sums in fp32 always."));
}

void add_refused_keys(std::vector<Option>& rows) {
  rows.push_back(refused("tie_word_embeddings", Type::boolean, only(true),
                         "the head shares the embedding's weights; write true or remove it"));
  rows.push_back(
      refused("scale_attn_weights", Type::boolean, only(true),
              "attention is always scaled by 1/sqrt(head size); write true or remove it"));
  rows.push_back(refused("scale_attn_by_inverse_layer_idx", Type::boolean, only(false),
                         "it is not there yet; write false or remove it"));
  rows.push_back(refused("add_cross_attention", Type::boolean, only(false),
                         "cross attention is not there; write false or remove it"));
  rows.push_back(refused("pruned_heads", Type::object, only(Json::object()),
                         "pruned heads are not there; remove it"));
  for (const auto& [alias, own] :
       {std::pair{"hidden_size", "n_embd"}, std::pair{"num_hidden_layers", "n_layer"},
        std::pair{"num_attention_heads", "n_head"},
        std::pair{"max_position_embeddings", "n_positions"},
        std::pair{"intermediate_size", "n_inner"}}) {
    rows.push_back(refused(alias, Type::integer, nothing(),
                           fmt::format("GPT-2's name for it is \"{}\"; use that", own)));
  }
}

}  // namespace

options::Table gpt2_table(Gpt2Draft& draft) {
  Gpt2Config& out = draft.config;
  Group group = {
      "gpt2",
      {honoured("model_type", the_only("gpt2"), "The family."),
       honoured("vocab_size", integer(out.vocab_size, kSize), "Token ids are below this."),
       honoured("n_positions", integer(out.n_positions, kSize), "Longest sequence."),
       honoured("n_ctx",
                integer(kSize, "", [&draft](uint64_t v) { draft.n_ctx = static_cast<int64_t>(v); }),
                "An old second name of `n_positions`; the two must agree."),
       honoured("n_embd", integer(out.n_embd, kSize), "Channels; a multiple of `n_head`."),
       honoured("n_layer", integer(out.n_layer, {1, 1 << 16}), "Blocks."),
       honoured("n_head", integer(out.n_head, kSize), "Attention heads."),
       honoured("n_inner",
                integer(kSize, "", [&out](uint64_t v) { out.n_inner = static_cast<int64_t>(v); }),
                "Channels inside the MLP; 4 * `n_embd` when not given."),
       honoured("layer_norm_epsilon",
                number(draft.layer_norm_epsilon, {.min = 0, .max = 1, .above_min = true}),
                "Added to the variance in layer norms."),
       honoured("initializer_range", number(draft.initializer_range, {.min = 0, .max = 1e3}),
                "Standard deviation of the initial weights; residual projections start with "
                "1/sqrt(2 * `n_layer`) of it."),
       honoured("activation_function", the_only("gelu_new"), "GELU by its tanh approximation."),
       dropout("embd_pdrop", out.embd_pdrop, "of the sum of the embeddings"),
       dropout("resid_pdrop", out.resid_pdrop, "of what attention and the MLP add to the residual"),
       dropout("attn_pdrop", out.attn_pdrop, "of attention probabilities")}};
  add_refused_keys(group.options);
  add_keys_without_effect(group.options);
  return {group};
}

}  // namespace strata::models
