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
  flat.parameters.push_back(std::move(placed));
}

bool is_persistent(const std::vector<Parameter>& parameters, int64_t persistent_numel) {
  return std::all_of(parameters.begin(), parameters.end(), [&](const Parameter& parameter) {
    return parameter.shape.numel() <= persistent_numel;
  });
}

int index_of(const FlatBuffer& flat, std::string_view name) {
  const auto it = std::find_if(flat.parameters.begin(), flat.parameters.end(),
                               [&](const FlatParameter& p) { return p.spec.name == name; });
  return static_cast<int>(it - flat.parameters.begin());
}

// Puts the flat buffer behind the `grains` of its shard space that there are; returns how many
// there are then.
int64_t place(FlatBuffer& flat, int64_t grains, const ZeroSharding& sharding) {
  flat.first_grain = grains;
  const int64_t counted = flat.numel / sharding.world_size / kGrainNumel;
  const int64_t first = grains + sharding.rank * counted - flat.shard_offset() / kGrainNumel;
  flat.counted = {first, first + counted};
  return flat.shard().end;
}

struct SettingRun {
  int64_t begin = 0;  // elements from the start of the flat buffer
  int64_t end = 0;
  ParameterSetting setting;
};

// Runs of neighbours with one setting. Padding has the setting of what it follows.
std::vector<SettingRun> setting_runs(const FlatBuffer& flat, const Config& config) {
  std::vector<SettingRun> runs;
  for (const FlatParameter& parameter : flat.parameters) {
    const ParameterSetting setting = setting_of(parameter.spec, config);
    if (!runs.empty()) {
      if (runs.back().setting == setting) continue;
      runs.back().end = parameter.offset;
    }
    runs.push_back({parameter.offset, flat.numel, setting});
  }
  return runs;
}

}  // namespace

// The parameters of one flat buffer, those with weight decay first.
FlatBuffer ModelLayout::lay_out(const std::vector<Parameter>& parameters, bool trainable,
                                bool whole) const {
  FlatBuffer flat;
  for (bool decay : {true, false}) {
    for (const Parameter& parameter : parameters) {
      if (parameter.trainable == trainable && parameter.weight_decay == decay) {
        append(flat, parameter);
      }
    }
  }
  flat.numel = round_up(flat.content_numel, kGrainNumel * sharding_.world_size);
  // Frozen parameters have no state but themselves.
  flat.shards = !trainable && whole ? 1 : state_shards();
  flat.shard_index = flat.shards == 1 ? 0 : sharding_.rank;
  flat.shard_numel = flat.numel / flat.shards;
  return flat;
}

ModelLayout::ModelLayout(const Model& model, const ZeroSharding& sharding) : sharding_(sharding) {
  std::map<std::string, ParameterRef, std::less<>> owners;
  for (const auto& layer : model.layers) {
    const auto parameters = layer->parameters();
    const int unit_index = static_cast<int>(units_.size());
    Unit unit;
    unit.name = layer->name();
    unit.whole = sharding.stage < 3 || is_persistent(parameters, sharding.persistent_numel);
    unit.trainable = lay_out(parameters, true, unit.whole);
    unit.frozen = lay_out(parameters, false, unit.whole);
    trainable_grains_ = place(unit.trainable, trainable_grains_, sharding);
    frozen_grains_ = place(unit.frozen, frozen_grains_, sharding);
    unit.needs = {unit_index};
    const bool is_further = layer->is_further_tile() && unit_index > 0;
    unit.first_tile = is_further ? units_.back().first_tile : unit_index;
    unit.layer = unit_index == 0 ? 0 : units_.back().layer + (is_further ? 0 : 1);
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
  int last_tile = static_cast<int>(units_.size()) - 1;
  for (size_t u = units_.size(); u-- > 0;) {
    units_[u].last_tile = last_tile;
    if (units_[u].first_tile == static_cast<int>(u)) last_tile = units_[u].input_unit();
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

std::vector<Segment> segment_table(const ModelLayout& layout, const Config& config) {
  std::vector<Segment> segments;
  int64_t unit_index = 0;  // of the unit's first element in the whole model
  for (const Unit& unit : layout.units()) {
    const int64_t shard = unit.trainable.shard_numel;
    const int64_t offset = unit.trainable.shard_offset();
    const int64_t space_begin = unit.trainable.first_grain * kGrainNumel;
    for (const SettingRun& run : setting_runs(unit.trainable, config)) {
      const int64_t begin = std::max<int64_t>(run.begin - offset, 0);
      const int64_t end = std::min(run.end - offset, shard);
      if (begin >= end) continue;
      segments.push_back({space_begin + begin, space_begin + end, run.setting,
                          static_cast<uint64_t>(unit_index + offset + begin)});
    }
    // Padding, which depends on the number of ranks, does not count: it is zero and stays zero.
    unit_index += grains_for(unit.trainable.content_numel) * kGrainNumel;
  }
  return segments;
}

}  // namespace strata::engine
