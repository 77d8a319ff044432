#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <system_error>
#include <utility>
#include <vector>

#include "engine/checkpoint/gpt2_tensors.h"
#include "engine/checkpoint/safetensors_file.h"
#include "engine/config/json_text.h"
#include "kernels/ops/optimizer_ops.h"
#include "strata/error.h"
#include "strata/gpt2_files.h"

namespace strata::models {
namespace {

namespace fs = std::filesystem;
using safetensors::ElementType;

constexpr std::string_view kPrefix = "transformer.";
constexpr std::string_view kTokenTable = "transformer.wte.weight";
constexpr std::string_view kHead = "lm_head.weight";

// A GPT2Model's tensors lack the prefix that a GPT2LMHeadModel's have.
std::string parameter_name(const std::string& tensor) {
  return tensor.starts_with(kPrefix) || tensor == kHead ? tensor : std::string(kPrefix) + tensor;
}

// The causal mask, which older versions kept.
bool is_mask(std::string_view parameter) {
  return parameter.ends_with(".attn.bias") || parameter.ends_with(".attn.masked_bias");
}

// The files that an index names. Throws ConfigError.
std::set<std::string> files_of_index(const std::string& path) {
  const Json index = parse_json_object(read_text_file(path), path);
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object()) {
    throw ConfigError(
        fmt::format("{}: it has no object \"weight_map\": save the model anew", path));
  }
  std::set<std::string> files;
  for (const auto& [tensor, file] : map->items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (name.empty() || name == ".." || name != fs::path(name).filename()) {
      throw ConfigError(
          fmt::format("{}: \"{}\" lies in {}, which is no file's name: save the model anew", path,
                      tensor, describe(file)));
    }
    files.insert(name);
  }
  return files;
}

// What cannot be looked at is not there.
bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

std::vector<std::string> weight_files(const fs::path& directory) {
  if (is_there(directory / kWeightsFile)) return {(directory / kWeightsFile).string()};
  if (!is_there(directory / kIndexFile)) {
    throw ConfigError(fmt::format(
        "{}: neither {} nor {} is there: name a directory that transformers' save_pretrained wrote",
        directory.string(), kWeightsFile, kIndexFile));
  }
  std::vector<std::string> paths;
  for (const std::string& file : files_of_index((directory / kIndexFile).string())) {
    paths.push_back((directory / file).string());
  }
  return paths;
}

// Two things that shapes do not show.
void check_config(const fs::path& directory, const Gpt2Config& config) {
  const std::string path = (directory / kConfigFile).string();
  if (!is_there(path)) return;
  const Gpt2Config saved = Gpt2Config::from_file(path);
  const auto compare = [&](const char* key, auto of_weights, auto of_model) {
    if (of_weights == of_model) return;
    throw ConfigError(
        fmt::format("{}: \"{}\" is {}, and the model to start from these weights has {}: give "
                    "them the same",
                    path, key, of_weights, of_model));
  };
  compare("n_head", saved.n_head, config.n_head);
  compare("layer_norm_epsilon", saved.layer_norm_epsilon, config.layer_norm_epsilon);
}

// Open files and where each parameter lies in them. Immutable.
class Gpt2Weights {
 public:
  Gpt2Weights(const std::string& directory, const Gpt2Config& config) : directory_(directory) {
    check_config(directory, config);
    for (const std::string& path : weight_files(directory)) {
      files_.push_back(safetensors::File::open(path));
    }
    for (const safetensors::File& file : files_) {
      for (const safetensors::Tensor& tensor : file.header().tensors()) add(file, tensor);
    }
    check_parameters(gpt2_parameters(config));
    check_head();
  }

  void read(std::string_view name, int64_t first, std::span<float> out) const {
    const auto at = places_.find(name);
    if (at == places_.end()) {
      throw ConfigError(fmt::format("{}: it has no parameter '{}'", directory_, name));
    }
    read(at->second, first, out);
  }

 private:
  struct Place {
    const safetensors::File* file = nullptr;
    const safetensors::Tensor* tensor = nullptr;
  };

  void add(const safetensors::File& file, const safetensors::Tensor& tensor) {
    const std::string name = parameter_name(tensor.name);
    if (is_mask(name)) return;
    const bool is_readable = tensor.type == ElementType::f32 || tensor.type == ElementType::f16 ||
                             tensor.type == ElementType::bf16;
    if (!is_readable) {
      throw ConfigError(
          fmt::format("{}: '{}' is of dtype {}: save the model in float32, float16 or bfloat16",
                      file.path(), tensor.name, safetensors::name(tensor.type)));
    }
    if (!places_.emplace(name, Place{&file, &tensor}).second) {
      throw ConfigError(fmt::format("{}: '{}' is there a second time: save the model anew",
                                    file.path(), tensor.name));
    }
  }

  void check_parameters(const std::vector<Parameter>& parameters) const {
    std::set<std::string_view> known = {kHead};
    for (const Parameter& parameter : parameters) {
      known.insert(parameter.name);
      check_shape(parameter);
    }
    for (const auto& [name, place] : places_) {
      if (known.contains(name)) continue;
      throw ConfigError(fmt::format(
          "{}: '{}' is not a parameter of the model: give the model that was saved (its {})",
          place.file->path(), place.tensor->name, kConfigFile));
    }
  }

  void check_shape(const Parameter& parameter) const {
    const auto at = places_.find(parameter.name);
    if (at == places_.end()) {
      throw ConfigError(
          fmt::format("{}: the model's '{}' is missing: give the model that was saved (its {})",
                      directory_, parameter.name, kConfigFile));
    }
    const auto& [file, tensor] = at->second;
    const std::span<const int64_t> wanted(parameter.shape.dims.data(), parameter.shape.rank);
    if (std::equal(wanted.begin(), wanted.end(), tensor->shape.begin(), tensor->shape.end())) {
      return;
    }
    throw ConfigError(
        fmt::format("{}: '{}' has the shape [{}] and the model's has [{}]: give the model that was "
                    "saved (its {})",
                    file->path(), tensor->name, fmt::join(tensor->shape, ", "),
                    fmt::join(wanted, ", "), kConfigFile));
  }

  // Where the head is there by itself, it must be the token table.
  void check_head() const {
    const auto head = places_.find(kHead);
    if (head == places_.end()) return;
    const Place& table = places_.find(kTokenTable)->second;
    const safetensors::Tensor& tensor = *head->second.tensor;
    bool is_tied = tensor.shape == table.tensor->shape;
    std::vector<float> head_values(kChunkNumel), table_values(kChunkNumel);
    for (int64_t at = 0; is_tied && at < tensor.numel(); at += kChunkNumel) {
      const auto count = static_cast<size_t>(std::min(kChunkNumel, tensor.numel() - at));
      read(head->second, at, std::span(head_values).first(count));
      read(table, at, std::span(table_values).first(count));
      is_tied = std::equal(head_values.begin(), head_values.begin() + static_cast<int64_t>(count),
                           table_values.begin());
    }
    if (!is_tied) {
      throw ConfigError(fmt::format(
          "{}: '{}' is not '{}', and the head shares the embedding's weights here: give a model "
          "whose head is tied",
          head->second.file->path(), kHead, table.tensor->name));
    }
  }

  static void read(const Place& place, int64_t first, std::span<float> out) {
    const auto& [file, tensor] = place;
    if (tensor->type == ElementType::f32) {
      file->read(*tensor, static_cast<uint64_t>(first) * sizeof(float),
                 std::as_writable_bytes(out));
      return;
    }
    const DType stored = tensor->type == ElementType::bf16 ? DType::bf16 : DType::fp16;
    std::array<uint16_t, kChunkNumel> halves;  // filled before it is read
    for (size_t done = 0; done < out.size();) {
      const size_t count = std::min(halves.size(), out.size() - done);
      file->read(*tensor, (static_cast<uint64_t>(first) + done) * sizeof(uint16_t),
                 std::as_writable_bytes(std::span(halves).first(count)));
      ops::cast(out.data() + done, DType::fp32, halves.data(), stored, static_cast<int64_t>(count));
      done += count;
    }
  }

  static constexpr int64_t kChunkNumel = 1 << 14;

  const std::string directory_;
  std::vector<safetensors::File> files_;
  std::map<std::string, Place, std::less<>> places_;  // by the parameter's name
};

}  // namespace

ParameterReader read_gpt2(const std::string& directory, const Gpt2Config& config) {
  const auto weights = std::make_shared<const Gpt2Weights>(directory, config);
  return [weights](std::string_view name, int64_t first, std::span<float> out) {
    weights->read(name, first, out);
  };
}

}  // namespace strata::models
