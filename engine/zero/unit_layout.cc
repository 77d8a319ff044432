#include "engine/zero/unit_layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "strata/error.h"

namespace strata::engine {
namespace {

void append(FlatBuffer& flat, const Parameter& parameter) {
  FlatParameter placed{parameter, round_up(flat.content_numel, kParamAlignNumel)};
  flat.content_numel = placed.offset + placed.numel();
  if (parameter.weight_decay) flat.decay_numel = round_up(flat.content_numel, kParamAlignNumel);
  flat.parameters.push_back(std::move(placed));
}

// Lays out the parameters of one flat buffer, those with weight decay first.
FlatBuffer lay_out(const std::vector<Parameter>& parameters, bool trainable, int world_size) {
  FlatBuffer flat;
  for (bool decay : {true, false}) {
    for (const Parameter& parameter : parameters) {
      if (parameter.trainable == trainable && parameter.weight_decay == decay) {
        append(flat, parameter);
      }
    }
  }
  flat.numel = round_up(flat.content_numel, kGrainNumel * world_size);
  flat.shard_numel = flat.numel / world_size;
  return flat;
}

int index_of(const FlatBuffer& flat, std::string_view name) {
  const auto it = std::find_if(flat.parameters.begin(), flat.parameters.end(),
                               [&](const FlatParameter& p) { return p.spec.name == name; });
  return static_cast<int>(it - flat.parameters.begin());
}

}  // namespace

ModelLayout::ModelLayout(const Model& model, int rank, int world_size)
    : rank_(rank), world_size_(world_size) {
  std::map<std::string, ParameterRef, std::less<>> owners;
  for (const auto& layer : model.layers) {
    const auto parameters = layer->parameters();
    const int unit_index = static_cast<int>(units_.size());
    Unit unit;
    unit.name = layer->name();
    unit.trainable = lay_out(parameters, true, world_size);
    unit.frozen = lay_out(parameters, false, world_size);
    unit.trainable.first_grain = trainable_grains_;
    unit.frozen.first_grain = frozen_grains_;
    trainable_grains_ = unit.trainable.shard().end;
    frozen_grains_ = unit.frozen.shard().end;
    unit.needs = {unit_index};
    for (const Parameter& parameter : parameters) {
      const FlatBuffer& flat = parameter.trainable ? unit.trainable : unit.frozen;
      const ParameterRef ref{unit_index, parameter.trainable, index_of(flat, parameter.name)};
      if (!owners.emplace(parameter.name, ref).second) {
        throw ConfigError(
            fmt::format("two parameters are named '{}': give each its own name", parameter.name));
      }
      unit.parameters.push_back(ref);
      parameter_count_ += parameter.shape.numel();
    }
    units_.push_back(std::move(unit));
  }
  for (size_t u = 0; u < units_.size(); ++u) {
    for (const std::string& name : model.layers[u]->shared_parameters()) {
      const auto owner = owners.find(name);
      if (owner == owners.end()) {
        throw ConfigError(fmt::format("layer '{}' shares the parameter '{}', which no layer owns",
                                      units_[u].name, name));
      }
      units_[u].parameters.push_back(owner->second);
      auto& needs = units_[u].needs;
      if (std::find(needs.begin(), needs.end(), owner->second.unit) == needs.end()) {
        needs.push_back(owner->second.unit);
      }
    }
  }
}

const FlatParameter& ModelLayout::parameter(const ParameterRef& ref) const {
  const Unit& unit = units_[static_cast<size_t>(ref.unit)];
  const FlatBuffer& flat = ref.trainable ? unit.trainable : unit.frozen;
  return flat.parameters[static_cast<size_t>(ref.index)];
}

ParameterRef ModelLayout::find(std::string_view name) const {
  for (const Unit& unit : units_) {
    for (const ParameterRef& ref : unit.parameters) {
      if (parameter(ref).spec.name == name) return ref;
    }
  }
  throw ConfigError(fmt::format("the model has no parameter named '{}'", name));
}

std::vector<Segment> segment_table(const ModelLayout& layout) {
  std::vector<Segment> segments;
  int64_t unit_index = 0;  // of the unit's first element in the whole model
  for (const Unit& unit : layout.units()) {
    const int64_t shard = unit.trainable.shard_numel;
    const int64_t space_begin = unit.trainable.first_grain * kGrainNumel;
    // The boundary between the two settings, in this shard.
    const int64_t boundary =
        std::clamp<int64_t>(unit.trainable.decay_numel - layout.rank() * shard, 0, shard);
    const auto add = [&](int64_t begin, int64_t end, bool weight_decay) {
      const int64_t first_index = unit_index + layout.rank() * shard + begin;
      if (begin >= end) return;
      segments.push_back({space_begin + begin, space_begin + end, weight_decay,
                          static_cast<uint64_t>(first_index)});
    };
    add(0, boundary, true);
    add(boundary, shard, false);
    // Padding, which depends on the number of ranks, does not count: it is zero and stays zero.
    unit_index += grains_for(unit.trainable.content_numel) * kGrainNumel;
  }
  return segments;
}

}  // namespace strata::engine
