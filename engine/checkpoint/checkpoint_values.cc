#include "engine/checkpoint/checkpoint_values.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "engine/model/slice_runs.h"
#include "kernels/ops/optimizer_ops.h"
#include "strata/error.h"

namespace strata::engine {
namespace {

using safetensors::ElementType;

constexpr std::array<StateKind, 2> kWeights = {StateKind::master, StateKind::frozen};

// Where a checkpoint has a parameter; an empty name: nowhere.
std::string file_of(const CheckpointReader& checkpoint, const std::string& parameter) {
  for (const StateKind kind : kWeights) {
    if (checkpoint.find(checkpoint_file(kind), parameter) != nullptr) return checkpoint_file(kind);
  }
  return "";
}

// The number behind ".tile", and 0 where there is none.
int64_t tile_of(std::string_view tensor) {
  constexpr std::string_view kMark = ".tile";
  const size_t at = tensor.rfind(kMark);
  int64_t tile = 0;
  if (at == std::string_view::npos) return tile;
  const char* const digits = tensor.data() + at + kMark.size();
  std::from_chars(digits, tensor.data() + tensor.size(), tile);
  return tile;
}

// More tiles than a layer has channels, heads or words are as many as it has, so the largest
// number of any tile tells of all layers. There are no more tiles than tensors.
int64_t tiles_in(const CheckpointReader& checkpoint) {
  int64_t last = 0, most = 0;
  for (const StateKind kind : kWeights) {
    if (!checkpoint.has(checkpoint_file(kind))) continue;
    const auto& tensors = checkpoint.header(checkpoint_file(kind)).tensors();
    most += static_cast<int64_t>(tensors.size());
    for (const safetensors::Tensor& tensor : tensors) last = std::max(last, tile_of(tensor.name));
  }
  return std::min(last, most) + 1;
}

}  // namespace

Gpt2InCheckpoint gpt2_of(const CheckpointReader& checkpoint) {
  const std::string& config = checkpoint.manifest().model_config;
  const std::string source =
      fmt::format("{}/{}: \"model_config\"", checkpoint.path(), kManifestName);
  if (config.empty()) {
    throw ConfigError(fmt::format(
        "{} is null: a checkpoint of models::gpt2() is wanted, which describes its model there",
        source));
  }
  return {models::Gpt2Config::from_json(config, source), tiles_in(checkpoint)};
}

CheckpointValues::CheckpointValues(CheckpointReader& checkpoint, const Model& model)
    : checkpoint_(checkpoint) {
  for (const auto& layer : model.layers) {
    for (Parameter& parameter : layer->parameters()) {
      check(parameter);
      Slices& slices = parameters_[parameter.slice ? parameter.slice->of : parameter.name];
      slices.push_back(std::move(parameter));
    }
  }
}

void CheckpointValues::check(const Parameter& parameter) const {
  const std::string file = file_of(checkpoint_, parameter.name);
  const std::span<const int64_t> wanted(parameter.shape.dims.data(), parameter.shape.rank);
  const safetensors::Tensor* const tensor =
      file.empty() ? nullptr : checkpoint_.find(file, parameter.name);
  if (tensor == nullptr) {
    throw ConfigError(fmt::format("'{}' has no '{}', which the model that it describes has",
                                  checkpoint_.path(), parameter.name));
  }
  const bool is_weight = tensor->type == ElementType::f32 || tensor->type == ElementType::bf16 ||
                         tensor->type == ElementType::f16;
  if (!is_weight ||
      !std::equal(wanted.begin(), wanted.end(), tensor->shape.begin(), tensor->shape.end())) {
    throw ConfigError(fmt::format(
        "'{}/{}': '{}' is {} [{}], and the model that the checkpoint describes has [{}]",
        checkpoint_.path(), file, parameter.name, safetensors::name(tensor->type),
        fmt::join(tensor->shape, ", "), fmt::join(wanted, ", ")));
  }
}

void CheckpointValues::read(std::string_view name, int64_t first, std::span<float> out) {
  const auto at = parameters_.find(name);
  if (at == parameters_.end()) {
    throw ConfigError(fmt::format("'{}' has no parameter '{}'", checkpoint_.path(), name));
  }
  const auto& [whole, slices] = *at;
  if (!slices.front().slice) return read_stored(slices.front(), first, out);
  if (together_ != whole) put_together(whole, slices);
  std::copy_n(values_.begin() + first, out.size(), out.begin());
}

void CheckpointValues::put_together(const std::string& name, const Slices& slices) {
  together_.clear();
  values_.resize(static_cast<size_t>(slices.front().slice->shape.numel()));
  std::vector<float> slice;
  for (const Parameter& parameter : slices) {
    slice.resize(static_cast<size_t>(parameter.shape.numel()));
    read_stored(parameter, 0, slice);
    models::for_runs_in_whole(parameter, 0, slice, [&](int64_t whole, std::span<float> run) {
      std::copy(run.begin(), run.end(), values_.begin() + whole);
    });
  }
  together_ = name;
}

void CheckpointValues::read_stored(const Parameter& parameter, int64_t first,
                                   std::span<float> out) {
  const std::string file = file_of(checkpoint_, parameter.name);
  const ElementType type = checkpoint_.find(file, parameter.name)->type;
  const uint64_t element = safetensors::size_bytes(type);
  std::vector<std::byte> stored(out.size() * element);
  checkpoint_.read(file, parameter.name, static_cast<uint64_t>(first) * element, stored);
  const DType dtype = type == ElementType::f32    ? DType::fp32
                      : type == ElementType::bf16 ? DType::bf16
                                                  : DType::fp16;
  ops::cast(out.data(), DType::fp32, stored.data(), dtype, static_cast<int64_t>(out.size()));
}

}  // namespace strata::engine
